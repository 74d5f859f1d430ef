"""`pilotfish generate`: text for one prompt, or for every line of a file.

Knows: where prompts come from and how answers are printed. Does not know: how they are made.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.cli.advice import flag_of_ours, with_flags
from pilotfish.cli.batch import Asked, answer_all, prompt_of
from pilotfish.cli.chat_keys import Meanwhile, TypedKeys
from pilotfish.cli.chat_options import add_chat_flags, first_chat_flag, given_by_flags
from pilotfish.cli.deltas import (
    check_show_draft,
    draft_colors,
    plain_text,
    say_if_cut,
    tell_of_other_text,
)
from pilotfish.cli.lines import Lines
from pilotfish.cli.loading import load_llm
from pilotfish.cli.options import add_model, add_model_flags, engine_options
from pilotfish.cli.parser import Parser, UsageError, add_flag, flag_of
from pilotfish.cli.requests import FileRequest, Reading, with_system
from pilotfish.cli.sampling_flags import (
    add_answer_flags,
    add_sampling_flags,
    check_sampling,
    sampling_fields,
    tell_of_defaults,
)
from pilotfish.cli.standard_streams import print_json, read_input
from pilotfish.cli.status_line import reading_line
from pilotfish.cli.terminal import say_dim
from pilotfish.errors import RequestError, UserError

if TYPE_CHECKING:
    from pilotfish.engine import LLM, RequestOutput

_EXAMPLES = (
    'pilotfish generate demo "Once upon a time" --seed 7',
    'pilotfish generate demo --chat "What is the capital of France?" --temperature 0',
    "pilotfish generate MODEL --input-file requests.jsonl --json > answers.jsonl",
    "make-requests | pilotfish generate MODEL --input-file - --order done --json",
    'pilotfish generate MODEL --prompt "..." --speculative ngram --show-draft',
)


def add_parser(subparsers: Any) -> Parser:
    """Declares the verb."""
    parser: Parser = subparsers.add_parser(
        "generate",
        help="generate text",
        description="Generate text from a prompt, or from every line of a file.",
        usage="pilotfish generate MODEL [TEXT] [flags]",
        examples=_EXAMPLES,
        spare="text",
        others=flag_of_ours,
    )
    add_model(parser)
    parser.add_argument("text", metavar="TEXT", nargs="?", help="as --prompt TEXT")
    group = parser.add_argument_group("what is asked, one of")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="text to continue; - reads standard input")
    source.add_argument("--chat", metavar="TEXT", help="a user's message, in the chat template")
    source.add_argument(
        "--input-file", metavar="F.jsonl", help="one JSON request a line; - reads standard input"
    )
    group = parser.add_argument_group("with it")
    group.add_argument("--system", metavar="TEXT", help="system message of chats (default: none)")
    group.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATH",
        help="an image for --prompt or --chat; may be given several times (default: none)",
    )
    group = parser.add_argument_group("what is printed")
    group.add_argument("--json", action="store_true", help="one JSON object per request")
    add_flag(
        group,
        "--order",
        "of --input-file's answers: input, or done, as they come (default: input)",
        choices=("input", "done"),
    )
    add_answer_flags(group)
    add_flag(group, "--show-draft", "mark accepted and rejected drafts", action="store_true")
    add_sampling_flags(parser)
    add_chat_flags(parser)
    add_model_flags(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    check_show_draft(args)
    if args.text is not None:
        _take_text(args)
    _check_prints(args)
    asked = _file(args) if args.input_file is not None else _Asked.one(_request(args))
    if args.image:
        _check_images(args)
    streamed = None if args.json or args.n not in (None, 1) else asked.only
    with load_llm(args, partial(_check, streamed)) as llm:
        tell_of_defaults(args, llm.default_sampling_params())
        if not args.json:
            tell_of_other_text(args)
        if streamed is not None:
            return _stream(llm, streamed, show_draft=args.show_draft)
        printer = _Printer(llm=llm, as_json=args.json)
        in_order = args.order != "done"
        answer_all(llm, asked.each, printer.write, in_order=in_order, total=asked.total)
    return printer.end()


@attrs.frozen(kw_only=True)
class _Asked:
    """What is asked. total: how many, if that is known. only: the request, if there is no file."""

    each: Iterator[Asked]
    total: int | None
    only: FileRequest | None = None

    @classmethod
    def one(cls, request: FileRequest) -> _Asked:
        return cls(each=iter([(0, request)]), total=1, only=request)


def _take_text(args: argparse.Namespace) -> None:
    """The text that stands without a flag is a prompt, if there is no other."""
    for flag in ("prompt", "chat", "input_file"):
        if getattr(args, flag) is not None:
            name = flag_of(flag)
            raise UsageError(f"got the prompt {args.text!r:.60} and {name}; wanted one of the two")
    args.prompt = args.text


def _check_prints(args: argparse.Namespace) -> None:
    """Raises UsageError for flags of which nothing would be seen."""
    for flag in ("logprobs", "prompt_logprobs"):
        if getattr(args, flag) is not None and not args.json:
            raise UsageError(f"{flag_of(flag)} is printed with --json only; wanted that too")
    is_many = args.input_file is not None or args.n not in (None, 1)
    if args.show_draft and is_many:
        raise UsageError("--show-draft shows one answer as it comes; wanted --prompt or --chat")
    if args.order is not None and args.input_file is None:
        raise UsageError("--order is of the answers to --input-file; wanted that too")


def _file(args: argparse.Namespace) -> _Asked:
    """The lines of --input-file. A file is checked, whole, before a model is loaded.

    Of a pipe the first line is; of the others, bad ones get an answer that says so.
    """
    if args.image:
        raise RequestError(
            '--image is read with --prompt and --chat; wanted "images" in the lines of --input-file'
        )
    check_sampling(args)
    lines = Lines(args.input_file)
    reading = Reading(
        name="standard input" if args.input_file == "-" else args.input_file,
        sampling=sampling_fields(args),
        options=given_by_flags(args),
        system=args.system,
    )
    numbered = lines.read()
    total: int | None = None
    if lines.can_be_read_again:
        total = 0
        for total, line in enumerate(numbered, 1):  # noqa: B007
            reading.request(*line)
        numbered = lines.read()
    elif (first := next(numbered, None)) is not None:
        reading.request(*first)
        numbered = chain([first], numbered)
    else:
        total = 0
    if total == 0:
        raise RequestError(f"{reading.name} has no request; wanted one JSON object a line")
    return _Asked(each=enumerate(_requests(reading, numbered)), total=total)


def _requests(
    reading: Reading, numbered: Iterator[tuple[int, bytes]]
) -> Iterator[FileRequest | UserError]:
    for number, line in numbered:
        try:
            yield reading.request(number, line)
        except UserError as error:
            yield error


def _request(args: argparse.Namespace) -> FileRequest:
    """The request that the flags name, checked before a model is loaded."""
    check_sampling(args)
    sampling, options = sampling_fields(args), given_by_flags(args)
    if args.chat is not None:
        return FileRequest(
            chat=with_system(args.system, args.chat, len(args.image)),
            chat_options=options,
            images=args.image,
            sampling=sampling,
        )
    flag = "--system" if args.system is not None else first_chat_flag(args)
    if flag is not None:
        raise RequestError(f"{flag} is for a chat template; wanted --chat or --input-file")
    if args.prompt is None:
        raise RequestError(
            "no prompt; give --prompt TEXT, --chat TEXT or --input-file F.jsonl "
            "(--prompt - reads standard input)"
        )
    prompt = read_input() if args.prompt == "-" else args.prompt
    return FileRequest(prompt=prompt, images=args.image, sampling=sampling)


def _check_images(args: argparse.Namespace) -> None:
    """Raises RequestError for paths that are no files, and where the model serves text only.

    Before weights are read, since no answer can come of it.
    """
    from pilotfish.loading.prepare import prepare_from_options
    from pilotfish.multimodal.files import check_path

    for place, path in enumerate(args.image):
        check_path(path, f"image {place}")
    prepared = prepare_from_options(args.model, **engine_options(args))
    if "image" not in prepared.modalities:
        raise RequestError(
            f"got --image and {prepared.route.hf_architecture} serves text only; wanted a prompt "
            "without images, or a model that serves them"
        )


def _check(request: FileRequest | None, llm: LLM) -> None:
    """Raises what can be said before weights are fetched: defaults of sampling that cannot be
    meant, and the refusal of a request that is the only one.
    """
    defaults = llm.default_sampling_params()
    if request is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again with the answer
        prompt = prompt_of(llm, request)
        if not request.images:  # which are read once, for the answer
            llm.check(prompt, request.params(defaults))


def _stream(llm: LLM, request: FileRequest, *, show_draft: bool) -> int:
    output: RequestOutput | None = None
    show = draft_colors(llm, request.prompt) if show_draft else plain_text
    params = request.params(llm.default_sampling_params())
    with reading_line(llm) as reading, Meanwhile(TypedKeys(None), reading.look):
        for delta in llm.stream(prompt_of(llm, request), params):
            reading.end()
            print(show(delta), end="", flush=True)
            output = delta.output
    assert output is not None, "the last delta has it"
    print(flush=True)
    if output.error is not None:
        raise RequestError(output.error)
    say_if_cut(llm, output)
    return 0


@attrs.define(kw_only=True)
class _Printer:
    """Prints outputs, each at once; as text they have headings."""

    llm: LLM
    as_json: bool
    num_cut: int = 0
    num_answers: int = 0
    num_refused: int = 0

    def write(self, output: RequestOutput, custom_id: str | None) -> None:
        """One request's, with all its answers."""
        if output.error is not None:
            self.num_refused += 1
            said = with_flags(output.error)
            print(f"pilotfish: error: request {output.index}: {said}", file=sys.stderr)
        self.num_answers += len(output.outputs)
        self.num_cut += sum(one.finish_reason == "length" for one in output.outputs)
        if self.as_json:
            name = {} if custom_id is None else {"custom_id": custom_id}
            print_json({**name, **output.to_json()})
        elif output.error is None:
            for one in output.outputs:
                place = f", sample {one.sample}" if output.others else ""
                print(f"==> {one.index}{place} <==\n{one.text}\n")
        sys.stdout.flush()

    def end(self) -> int:
        """Says what was cut; returns the exit code."""
        if self.num_cut and not self.as_json:
            say_dim(
                f"[{self.num_cut} of {self.num_answers} answers were cut: --max-tokens, or the "
                f"context of {self.llm.max_seq_len} tokens]"
            )
        return 2 if self.num_refused else 0
