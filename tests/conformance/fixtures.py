"""The behaviour of the conformance server's tools: one function each, in a table by name.

A tool gets a `Turn`, which holds the call and the ways to talk back, and returns a result as JSON. In the modern era
the tools that need an answer return `input_required` and are called again with it; in the legacy era they ask on the
call's own stream and wait.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import mcp_types as types
from mcp.server.subscriptions import InMemorySubscriptionBus, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPError

from tests.conformance.content import (
    ASK_ROOTS,
    COLOR_FORM,
    CONFIRM_FORM,
    DEFAULTS_FORM,
    ENUMS_FORM,
    FIXED_RESULTS,
    NAME_FORM,
    PROMPTS,
    RESPONSE_FORM,
    Json,
    ask_form,
    ask_model,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mcp.server.context import ServerRequestContext

DYNAMIC_TOOL, DYNAMIC_PROMPT = "test_dynamic_tool", "test_dynamic_prompt"
STEP = 0.05  # seconds between two notifications: the suite requires that they do not arrive together
RECONNECT_WAIT = 0.2  # seconds within which a client whose stream was closed reconnects

bus = InMemorySubscriptionBus()
"""The source of changes for listen streams."""


@dataclass(frozen=True)
class Turn:
    """One call of a tool or prompt, with what the client answered so far."""

    ctx: ServerRequestContext[Any, Any]
    arguments: Mapping[str, Any]
    answers: Mapping[str, Any]
    state: str | None

    @property
    def capabilities(self) -> types.ClientCapabilities:
        return self.ctx.session.client_capabilities or types.ClientCapabilities()

    def content_of(self, key: str) -> Json:
        """What the client filled into the form it was asked for under this key."""
        answer = self.answers.get(key)
        return dict(answer.content or {}) if isinstance(answer, types.ElicitResult) else {}

    async def log(self, data: str) -> None:
        await self.ctx.session.send_log_message("info", data, related_request_id=self.ctx.request_id)

    async def elicit(self, message: str, schema: Json) -> str:
        answer = await self.ctx.session.elicit_form(message, schema, related_request_id=self.ctx.request_id)
        return f"action={answer.action}, content={json.dumps(answer.content or {})}"


def say(value: str) -> Json:
    return {"content": [text(value)]}


def require(state: str | None = None, **asks: Json) -> Json:
    result: Json = {"resultType": "input_required", "inputRequests": asks}
    return result if state is None else result | {"requestState": state}


# -- talking while a call runs ---------------------------------------------------------------------------------------


async def tool_with_logging(turn: Turn) -> Json:
    for stage in ("Tool execution started", "Tool processing data"):
        await turn.log(stage)
        await anyio.sleep(STEP)
    await turn.log("Tool execution completed")
    return say("Three messages were logged.")


async def tool_with_progress(turn: Turn) -> Json:
    for done in (0, 50, 100):
        await turn.ctx.session.report_progress(done, 100, f"Completed step {done} of 100")
        await anyio.sleep(STEP)
    return say("Progress was reported three times.")


async def logging_tool(turn: Turn) -> Json:
    await turn.log("Only who opted in may see this.")
    return say("One message was logged.")


async def reconnection(turn: Turn) -> Json:
    await turn.log("Before the stream is closed")
    if turn.ctx.close_sse_stream is not None:
        await turn.ctx.close_sse_stream()
    await anyio.sleep(RECONNECT_WAIT)
    await turn.log("After the client came back")
    return say("Reconnection test completed.")


# -- asking in the legacy era ----------------------------------------------------------------------------------------


async def sampling(turn: Turn) -> Json:
    message = types.SamplingMessage(role="user", content=types.TextContent(text=turn.arguments["prompt"]))
    answer = await turn.ctx.session.create_message(
        messages=[message], max_tokens=100, related_request_id=turn.ctx.request_id
    )
    content = answer.content
    return say(f"LLM response: {content.text if isinstance(content, types.TextContent) else content}")


async def elicitation(turn: Turn) -> Json:
    return say(f"User response: {await turn.elicit(turn.arguments['message'], RESPONSE_FORM)}")


async def elicitation_defaults(turn: Turn) -> Json:
    return say(f"Elicitation completed: {await turn.elicit('Please fill in what differs', DEFAULTS_FORM)}")


async def elicitation_enums(turn: Turn) -> Json:
    return say(f"Elicitation completed: {await turn.elicit('Please choose', ENUMS_FORM)}")


# -- asking in the modern era ----------------------------------------------------------------------------------------


def require_elicitation(turn: Turn) -> Json:
    if "user_name" in turn.answers:
        return say(f"Hello, {turn.content_of('user_name').get('name', 'stranger')}!")
    return require(user_name=ask_form("What is your name?", NAME_FORM))


def require_sampling(turn: Turn) -> Json:
    answer = turn.answers.get("capital_question")
    if isinstance(answer, types.CreateMessageResult) and isinstance(answer.content, types.TextContent):
        return say(f"The model says: {answer.content.text}")
    return require(capital_question=ask_model("What is the capital of France?"))


def require_roots(turn: Turn) -> Json:
    answer = turn.answers.get("client_roots")
    if isinstance(answer, types.ListRootsResult):
        return say(f"Roots: {', '.join(str(root.uri) for root in answer.roots)}")
    return require(client_roots=ASK_ROOTS)


def require_state(turn: Turn) -> Json:
    if turn.state == "first-round" and "confirm" in turn.answers:
        return say("state-ok: the state came back as it was given.")
    return require("first-round", confirm=ask_form("Please confirm", CONFIRM_FORM))


def require_several(turn: Turn) -> Json:
    asks = {
        "user_name": ask_form("What is your name?", NAME_FORM),
        "greeting": ask_model("Generate a greeting", 50),
        "client_roots": ASK_ROOTS,
    }
    if asks.keys() <= turn.answers.keys():
        return say(f"All three came, and {turn.content_of('user_name').get('name')} is greeted.")
    return require("all-three", **asks)


def require_twice(turn: Turn) -> Json:
    if turn.state == "named" and "step2" in turn.answers:
        return say(f"The color is {turn.content_of('step2').get('color')}.")
    if turn.state == "asked" and "step1" in turn.answers:
        return require("named", step2=ask_form("Step 2: What is your favorite color?", COLOR_FORM))
    return require("asked", step1=ask_form("Step 1: What is your name?", NAME_FORM))


def require_sealed_state(turn: Turn) -> Json:
    # A tampered state never arrives here: the middleware that seals it refuses it (server.py).
    if turn.state is not None:
        return say("state-ok: the seal was whole.")
    return require("sealed", confirm=ask_form("Please confirm", CONFIRM_FORM))


def require_what_is_declared(turn: Turn) -> Json:
    asks: Json = {}
    if turn.capabilities.sampling is not None:
        asks["sample"] = ask_model("Say hello", 50)
    if turn.capabilities.elicitation is not None:
        asks["ask"] = ask_form("What is your name?", NAME_FORM)
    return require("declared", **asks)


def missing_capability(turn: Turn) -> Json:
    if turn.capabilities.sampling is None:
        raise MCPError(
            code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            message="This tool needs a client that declares sampling",
            data={"requiredCapabilities": {"sampling": {}}},
        )
    return say("The client declares sampling.")


# -- the rest --------------------------------------------------------------------------------------------------------


def x_mcp_header(turn: Turn) -> Json:
    return say(f"region={turn.arguments.get('region')}")


async def trigger_tool_change(_turn: Turn) -> Json:
    if TOOLS.pop(DYNAMIC_TOOL, None) is None:
        TOOLS[DYNAMIC_TOOL] = _fixed(say("I come and go."))
    await bus.publish(ToolsListChanged())
    return say("The list of tools has changed.")


async def trigger_prompt_change(_turn: Turn) -> Json:
    if PROMPTS.pop(DYNAMIC_PROMPT, None) is None:
        PROMPTS[DYNAMIC_PROMPT] = []
    await bus.publish(PromptsListChanged())
    return say("The list of prompts has changed.")


def _fixed(result: Json) -> Callable[[Turn], Json]:
    def answer(_turn: Turn) -> Json:
        return result

    return answer


TOOLS: dict[str, Callable[[Turn], Json | Awaitable[Json]]] = {
    **{name: _fixed(result) for name, result in FIXED_RESULTS.items()},
    "test_tool_with_logging": tool_with_logging,
    "test_tool_with_progress": tool_with_progress,
    "test_logging_tool": logging_tool,
    "test_reconnection": reconnection,
    "test_sampling": sampling,
    "test_elicitation": elicitation,
    "test_elicitation_sep1034_defaults": elicitation_defaults,
    "test_elicitation_sep1330_enums": elicitation_enums,
    "test_streaming_elicitation": require_elicitation,
    "test_input_required_result_elicitation": require_elicitation,
    "test_input_required_result_sampling": require_sampling,
    "test_input_required_result_list_roots": require_roots,
    "test_input_required_result_request_state": require_state,
    "test_input_required_result_multiple_inputs": require_several,
    "test_input_required_result_multi_round": require_twice,
    "test_input_required_result_tampered_state": require_sealed_state,
    "test_input_required_result_capabilities": require_what_is_declared,
    "test_missing_capability": missing_capability,
    "test_x_mcp_header": x_mcp_header,
    "test_trigger_tool_change": trigger_tool_change,
    "test_trigger_prompt_change": trigger_prompt_change,
}
