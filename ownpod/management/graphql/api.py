"""Runs a GraphQL request."""

import functools
import importlib.resources
import re
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    build_schema,
    execute_sync,
    parse,
)

from ownpod.errors import OwnPodError
from ownpod.management.graphql.context import Context
from ownpod.management.graphql.mutations import MUTATIONS
from ownpod.management.graphql.queries import QUERIES, USER

DEEPEST = 20
"""Levels of selections in a request, at most."""

LONGEST = 100_000
"""Characters of a request, at most."""

MOST_TOKENS = 10_000


_UNKNOWN = re.compile(r"type '(\w+)' not to include unknown field '([^']+)'")
_VALUE = re.compile(r"(, found:|(?<=value):|(?<= not):) .*", re.DOTALL)
_MISSING = re.compile(r"type '(\w+)' to include required field '([^']+)'")


@functools.cache
def schema() -> GraphQLSchema:
    """The schema, with the resolvers of its operations."""
    source = importlib.resources.files(__package__).joinpath("schema.graphql").read_text()
    built = build_schema(source, assume_valid=True)
    for type_name, resolvers in (("Query", QUERIES), ("Mutation", MUTATIONS), ("User", USER)):
        fields = built.type_map[type_name].fields  # type: ignore[attr-defined]
        for name, resolve in resolvers.items():
            fields[name].resolve = resolve
    return built


def run(request: Any, context: Context) -> dict[str, Any]:
    """The answer to a request, with ``errors`` only if there are some: RunPod's clients test for the key's presence.

    Unlike the standard, a selection of an unknown field is no error: RunPod's clients select fields that OwnPod does not have.

    Args:
        request: the JSON of the request: ``query``, and perhaps ``variables`` and ``operationName``.
        context: what the operations use.
    """
    query = request.get("query") if isinstance(request, dict) else None
    variables = request.get("variables") if isinstance(request, dict) else None
    if not isinstance(query, str) or not isinstance(variables, dict | None):
        return _failed('the body must be a JSON object like {"query": "query { myself { id } }"}')
    if len(query) > LONGEST:
        return _failed(f"the query must have at most {LONGEST} characters")
    try:
        document = parse(query, max_tokens=MOST_TOKENS, no_location=True)
    except (GraphQLError, RecursionError) as error:
        return _failed(getattr(error, "message", "the query is nested too deeply"))
    if _depth(document) > DEEPEST:
        return _failed(f"the query must have at most {DEEPEST} levels")
    if unknown := _unknown_operation(document):
        return _failed(unknown)
    operation = request.get("operationName")
    result = execute_sync(
        schema(),
        document,
        context_value=context,
        variable_values=variables,
        operation_name=operation if isinstance(operation, str) else None,
    )
    return _answered(result)


def _unknown_operation(document: DocumentNode) -> str:
    """The first operation that OwnPod does not have, in the words of GraphQL; "": it has all. A client would otherwise take the
    answer, which lacks it, for a success.
    """
    kinds = {"query": "Query", "mutation": "Mutation"}
    for definition in document.definitions:
        if not isinstance(definition, OperationDefinitionNode):
            continue
        kind = kinds.get(definition.operation.value, "Subscription")
        known: Any = schema().type_map.get(kind)
        for field in definition.selection_set.selections:
            name = field.name.value if isinstance(field, FieldNode) else "__typename"
            if not name.startswith("__") and (known is None or name not in known.fields):
                return f'Cannot query field "{name}" on type "{kind}".'
    return ""


def _answered(result: ExecutionResult) -> dict[str, Any]:
    for error in result.errors or ():
        original = error.original_error
        if original is not None and not isinstance(original, OwnPodError | GraphQLError):
            raise original
    answer: dict[str, Any] = {"data": result.data}
    if result.errors:
        answer["errors"] = [{"message": _words(e.message), "path": e.path} for e in result.errors]
    return answer


def _words(message: str) -> str:
    """A message of graphql-core in the words of RunPod's service, which programs match, and without values: a template's
    variables may be secrets.
    """
    if unknown := _UNKNOWN.search(message):
        return f'Field "{unknown[2]}" is not defined by type "{unknown[1]}".'
    if missing := _MISSING.search(message):
        wanted: Any = schema().type_map[missing[1]]
        return f'Field "{missing[2]}" of required type "{wanted.fields[missing[2]].type}" was not provided.'
    return _VALUE.sub("", message)


def _failed(message: str) -> dict[str, Any]:
    return {"data": None, "errors": [{"message": message}]}


def _depth(node: Any) -> int:
    """The number of nested selections of a parsed request."""
    deepest, stack = 0, [(node, 0)]
    while stack:
        found, level = stack.pop()
        deepest = max(deepest, level)
        selections = getattr(found, "selection_set", None)
        stack.extend((definition, level) for definition in getattr(found, "definitions", ()))
        stack.extend((part, level + 1) for part in (selections.selections if selections else ()))
    return deepest
