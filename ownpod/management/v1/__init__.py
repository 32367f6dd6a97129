"""RunPod's REST v1 as a translation of the catalog's rows: field names, defaults, checks and answers.

Imports the rules and the errors only. Source: RunPod's OpenAPI document of v1 and its real answers.
"""
