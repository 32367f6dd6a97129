"""RunPod's REST v2 as a translation of the catalog's rows: field names, defaults, checks and answers.

Imports the rules and the errors only, and jsonschema. Source: RunPod's OpenAPI document of v2 and its real answers.
"""
