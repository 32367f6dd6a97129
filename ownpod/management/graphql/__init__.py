"""RunPod's GraphQL API as a translation of the catalog's rows.

Imports the rules, the errors, the managing calls of this floor, and graphql-core. ``schema.graphql`` has the names that
RunPod's clients write; source: the queries of those clients.
"""
