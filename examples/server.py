"""A server in one page: answers over HTTP, piece by piece, all requests in one batch.

    python examples/server.py MODEL [PORT]
    curl -N localhost:8000/generate -H 'content-type: application/json' \\
        -d '{"prompt": "Once upon a time", "max_tokens": 32}'

The body has a prompt, or messages, and any field of SamplingParams. Each line of the answer is a
JSON object with the next piece of text; the last one has finish_reason. Needs fastapi and uvicorn.
"""

import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from pilotfish import LLM, SamplingParams
from pilotfish.engine import Delta
from pilotfish.errors import UserError


def make_app(model: str) -> FastAPI:
    """The server of one model, which is loaded when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with LLM(model) as app.state.llm:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/generate")
    async def generate(body: dict[str, Any]) -> StreamingResponse:
        llm: LLM = app.state.llm
        prompt, messages = body.pop("prompt", None), body.pop("messages", None)
        try:
            if messages is not None:
                prompt = llm.chat_prompt(messages)
            stream = llm.astream(prompt, SamplingParams(**body))
            first = await anext(stream)  # here a bad prompt is refused
        except (UserError, TypeError) as error:
            raise HTTPException(400, str(error)) from None
        return StreamingResponse(lines(first, stream), media_type="application/jsonl")

    return app


async def lines(first: Delta, stream: AsyncGenerator[Delta, None]) -> AsyncIterator[str]:
    """A client that hangs up cancels this, and its request is let go."""
    async with aclosing(stream):
        yield line(first)
        async for delta in stream:
            yield line(delta)


def line(delta: Delta) -> str:
    """A piece as JSON."""
    return json.dumps({"text": delta.text, "finish_reason": delta.finish_reason}) + "\n"


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1]), port=int((sys.argv[2:] or ["8000"])[0]))
