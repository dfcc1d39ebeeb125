"""The method table against the schemas: complete, and consistent with the specification."""

from __future__ import annotations

from collections import Counter
from types import NoneType
from typing import get_args

import mcp_types.methods as schema
import pytest
from mcp.shared.inbound import NAME_BEARING_METHODS

from gateway.calls import Era
from gateway.eras import methods
from gateway.eras.methods import METHODS, Kind, Method, Role
from gateway.eras.versions import MODERN_VERSIONS

SCHEMAS = (
    schema.CLIENT_REQUESTS, schema.SERVER_REQUESTS, schema.CLIENT_NOTIFICATIONS, schema.SERVER_NOTIFICATIONS,
)  # fmt: skip
NOT_IN_THE_SDK = {
    "tasks/get": "2025-11-25 and the extension for tasks, which the SDK leaves out",
    "tasks/update": "the extension for tasks",
    "tasks/cancel": "2025-11-25 and the extension for tasks",
    "tasks/result": "2025-11-25",
    "tasks/list": "2025-11-25",
    "notifications/tasks/status": "2025-11-25",
}
BOTH_ERAS = {
    "sampling/createMessage": "an entry of inputRequests in the modern era",
    "elicitation/create": "an entry of inputRequests in the modern era",
    "roots/list": "an entry of inputRequests in the modern era",
}
WITHOUT_TASKS = {"notifications/cancelled": {"requestId"}}
"""Members that are required unless the message is about a task of the client, which the gateway does not offer."""
MODELS = {**schema.MONOLITH_REQUESTS, **schema.MONOLITH_NOTIFICATIONS}


def names(*roles: Role) -> set[str]:
    return {row.name for row in METHODS if row.role in roles}


def sent_by(*maps: object) -> set[str]:
    return {name for sent in maps for name, _ in sent}  # pyright: ignore[reportGeneralTypeIssues]


def test_every_method_of_the_schemas_has_a_row() -> None:
    assert sent_by(*SCHEMAS) | NOT_IN_THE_SDK.keys() == {row.name for row in METHODS}
    assert max(Counter(row.name for row in METHODS).values()) == 1


@pytest.mark.parametrize("row", [row for row in METHODS if row.name not in NOT_IN_THE_SDK], ids=lambda row: row.name)
def test_a_row_has_the_eras_of_the_schemas(row: Method) -> None:
    versions = {version for sent in SCHEMAS for name, version in sent if name == row.name}
    eras = {Era.MODERN if version in MODERN_VERSIONS else Era.LEGACY for version in versions}
    assert set(row.eras) == (set(Era) if row.name in BOTH_ERAS else eras)


def test_roles_say_who_sends_a_method() -> None:
    assert names(Role.LIST, Role.CALL, Role.WATCH, Role.GATEWAY) == sent_by(schema.CLIENT_REQUESTS)
    assert names(Role.SERVER_REQUEST) == sent_by(schema.SERVER_REQUESTS) - {"ping"}
    assert names(Role.TASK) | {"notifications/tasks/status"} == NOT_IN_THE_SDK.keys()
    from_clients = sent_by(schema.CLIENT_NOTIFICATIONS)
    assert names(Role.CLIENT_NOTIFICATION) == from_clients | {"notifications/tasks/status"}
    assert names(Role.SERVER_NOTIFICATION) == sent_by(schema.SERVER_NOTIFICATIONS) - from_clients


def test_the_views_agree_with_the_sdk() -> None:
    assert methods.SUSPENDABLE == schema.INPUT_REQUIRED_METHODS
    assert methods.CACHEABLE == schema.CACHEABLE_METHODS
    assert {name: kind.key for name, kind in methods.OWNER_KIND.items()} == {
        **NAME_BEARING_METHODS,
        **dict.fromkeys(methods.WATCHED, "uri"),
    }
    assert methods.LISTED_KIND.keys() == names(Role.LIST)
    assert methods.LIST_CHANGED.keys() <= names(Role.SERVER_NOTIFICATION)


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_the_columns_of_a_row_fit_its_role(row: Method) -> None:
    assert bool(row.capability) == (row.role is Role.SERVER_REQUEST)
    assert (row.kind is None) or row.role in {Role.LIST, Role.CALL, Role.WATCH}
    assert not (row.content or row.suspendable) or row.role is Role.CALL
    assert not row.cacheable or Era.MODERN in row.eras
    assert not row.opens or row.role is Role.GATEWAY
    assert row.name.startswith("notifications/") == (row.role in {Role.CLIENT_NOTIFICATION, Role.SERVER_NOTIFICATION})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_optional_members_are_those_of_the_schemas(name: str) -> None:
    params = MODELS[name].model_fields["params"].annotation
    forms = [form for form in get_args(params) or [params] if form is not NoneType]
    required = [
        {field.alias or member for member, field in form.model_fields.items() if field.is_required()} for form in forms
    ]
    known = {field.alias or member for form in forms for member, field in form.model_fields.items()}
    optional = known - set.intersection(*required) - {"_meta"} - WITHOUT_TASKS.get(name, set())
    assert set(methods.OPTIONAL[name]) == optional


def test_kinds_name_their_features_and_things() -> None:
    assert methods.FEATURES == ("tools", "prompts", "resources")
    assert [kind.noun for kind in Kind] == ["tool", "prompt", "resource", "resource template"]
