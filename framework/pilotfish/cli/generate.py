"""`pilotfish generate`: text for one prompt, or for every line of a file.

Knows: where prompts come from and how answers are printed. Does not know: how they are made.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.cli.chat_options import add_chat_flags, first_chat_flag, given_by_flags
from pilotfish.cli.deltas import check_show_draft, draft_colors, plain_text, tell_of_other_text
from pilotfish.cli.options import (
    add_model_flags,
    add_sampling_flags,
    check_sampling,
    engine_options,
    load_llm,
    sampling_fields,
    tell_of_defaults,
)
from pilotfish.cli.requests import FileRequest, read_requests
from pilotfish.cli.standard_streams import print_json, read_input
from pilotfish.errors import RequestError, UserError

if TYPE_CHECKING:
    from pilotfish.engine import LLM, RequestOutput
    from pilotfish.engine.prompt import Prompt


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declares the verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "generate", help="generate text", description="Generate text from a prompt."
    )
    add_model_flags(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="P", help="text to continue; - reads standard input")
    source.add_argument("--chat", metavar="P", help="a user's message, in the chat template")
    source.add_argument(
        "--input-file", metavar="F.jsonl", help="one JSON request a line; - reads standard input"
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATH",
        help="an image for --prompt or --chat; may be given several times",
    )
    add_chat_flags(parser)
    add_sampling_flags(parser)
    parser.add_argument(
        "--show-draft", action="store_true", help="mark accepted and rejected drafts"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per request")
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    check_show_draft(args)
    requests = _requests(args)
    if args.image:
        _check_images(args)
    with load_llm(args) as llm:
        tell_of_defaults(args, llm.default_sampling_params())
        if not args.json:
            tell_of_other_text(args)
        if len(requests) == 1 and not args.json:
            return _stream(llm, requests[0], show_draft=args.show_draft)
        outputs = _answer_all(llm, requests)
    for output in outputs:
        _print_output(output, as_json=args.json)
    return 2 if any(output.finish_reason == "error" for output in outputs) else 0


def _requests(args: argparse.Namespace) -> list[FileRequest]:
    """The requests that the flags name, checked before a model is loaded."""
    if args.input_file is not None:
        if args.image:
            raise RequestError(
                '--image is read with --prompt and --chat; wanted "images" in the lines of '
                "--input-file"
            )
        return read_requests(args.input_file, sampling_fields(args), given_by_flags(args))
    check_sampling(args)
    sampling, options = sampling_fields(args), given_by_flags(args)
    if args.chat is not None:
        return [
            FileRequest(chat=args.chat, chat_options=options, images=args.image, sampling=sampling)
        ]
    if (flag := first_chat_flag(args)) is not None:
        raise RequestError(f"{flag} is for a chat template; wanted --chat or --input-file")
    if args.prompt is None:
        raise RequestError(
            "no prompt; give --prompt TEXT, --chat TEXT or --input-file F.jsonl "
            "(--prompt - reads standard input)"
        )
    prompt = read_input() if args.prompt == "-" else args.prompt
    return [FileRequest(prompt=prompt, images=args.image, sampling=sampling)]


def _check_images(args: argparse.Namespace) -> None:
    """Raises RequestError for paths that are no files, and where the model serves text only.

    Before weights are read, since no answer can come of it.
    """
    from pilotfish.engine.image_files import check_path
    from pilotfish.engine.loading import prepare_from_options

    for place, path in enumerate(args.image):
        check_path(path, f"image {place}")
    prepared = prepare_from_options(args.model, **engine_options(args))
    if "image" not in prepared.modalities:
        raise RequestError(
            f"got --image and {prepared.route.hf_architecture} serves text only; wanted a prompt "
            "without images, or a model that serves them"
        )


def _prompt(llm: LLM, request: FileRequest) -> Prompt:
    if request.chat is not None:
        return llm.image_chat_prompt(request.chat, request.images, **request.chat_options)
    prompt = request.prompt_token_ids if request.prompt is None else request.prompt
    assert prompt is not None
    return {"prompt": prompt, "images": request.images}


def _answer_all(llm: LLM, requests: list[FileRequest]) -> list[RequestOutput]:
    """Answers in the order of the requests; a refused one gets its error and disturbs nobody."""
    from pilotfish.engine import RequestOutput
    from pilotfish.engine.prompt import given_ids

    defaults = llm.default_sampling_params()
    params = [request.params(defaults) for request in requests]
    outputs: dict[int, RequestOutput] = {}
    prompts: dict[int, Prompt] = {}
    for index, request in enumerate(requests):
        try:
            prompts[index] = _prompt(llm, request)
        except RequestError as error:
            outputs[index] = RequestOutput.refused(index, (), params[index].seed, error)
    try:
        answers = llm.generate(list(prompts.values()), [params[i] for i in prompts])
    except UserError as error:
        if len(prompts) != 1:
            raise
        (index,) = prompts
        ids, seed = given_ids(prompts[index]), params[index].seed
        answers = [RequestOutput.refused(index, ids, seed, error)]
    for index, answer in zip(prompts, answers, strict=True):
        outputs[index] = attrs.evolve(answer, index=index)
    return [outputs[index] for index in range(len(requests))]


def _stream(llm: LLM, request: FileRequest, *, show_draft: bool) -> int:
    error = None
    show = draft_colors(llm, request.prompt) if show_draft else plain_text
    for delta in llm.stream(_prompt(llm, request), request.params(llm.default_sampling_params())):
        sys.stdout.write(show(delta))
        sys.stdout.flush()
        if delta.output is not None:
            error = delta.output.error
    sys.stdout.write("\n")
    if error is not None:
        raise RequestError(error)
    return 0


def _print_output(output: RequestOutput, *, as_json: bool) -> None:
    if output.error is not None:
        print(f"pilotfish: error: request {output.index}: {output.error}", file=sys.stderr)
    if as_json:
        print_json(output.to_json())
    elif output.error is None:
        print(f"[{output.index}] {output.text}")
