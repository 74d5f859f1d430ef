"""Promises about images in prompts: an image's rows are its own, wherever a pass or a page cuts it.

Knows: prompts of text and images. Does not know: towers or pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import torch

from pilotfish.batch import PlacedImage
from pilotfish.config import SamplingParams
from pilotfish.engine.prompt import Prompt
from pilotfish.errors import RequestError
from pilotfish.protocols import ImageFeatures
from pilotfish.testing.compare import want_same_bits
from pilotfish.testing.image_prompts import ImagePrompt
from pilotfish.testing.outcome import want, want_raised
from pilotfish.testing.subject import PAGE_SIZE, Subject

NUM_SCHEDULES = 6


def images_may_be_cut_anywhere(subject: Subject) -> None:
    """Chunks of any size, through images too, give the bits of one chunk."""
    prompt = subject.image_prompt(num_images=2)
    for dtype in subject.dtypes:
        whole = _alone(subject, dtype, prompt)
        for size in (1, 2, 3, PAGE_SIZE, 7):
            rows = _alone(subject, dtype, prompt, chunks=[size] * len(prompt.tokens))
            want_same_bits(rows, whole, f"{dtype}, chunks of {size}")


def images_do_not_meet(subject: Subject) -> None:
    """Requests with several images, one and none, in any mixture of passes, change no bit."""
    prompts = {str(n): subject.image_prompt(num_images=n, seed=n) for n in (2, 1, 0, 3)}
    for dtype in subject.dtypes:
        alone = {name: _alone(subject, dtype, prompt) for name, prompt in prompts.items()}
        for number in range(NUM_SCHEDULES):
            session = subject.session(dtype)
            for name, prompt in prompts.items():
                session.add(name, prompt.tokens, images=prompt.images)
            got = session.finish_mixed(random.Random(number))
            for name, wanted in alone.items():
                where = f"{dtype}, request {name} of drawn schedule {number}"
                want_same_bits(got[name], wanted, where)


def another_image_is_no_prefix_hit(subject: Subject) -> None:
    """Equal tokens share pages up to the first image that differs, and behind equal images too."""
    first = subject.image_prompt(num_images=2)
    other = attrs.evolve(first, images=(first.images[0], _as_place(subject, first, 1, seed=9)))
    for dtype in subject.dtypes:
        session = subject.session(dtype, prefix_caching=True)
        session.add("a", first.tokens, images=first.images)
        session.finish("a")
        session.drop("a")
        for name, prompt, most in (
            ("other", other, first.images[1].start),
            ("equal", first, len(first.tokens) - 1),
        ):
            found = session.add(name, prompt.tokens, images=prompt.images, warm=True).num_computed
            wanted = most // PAGE_SIZE * PAGE_SIZE
            want(found == wanted, f"{found} rows restored of the {name} images", f"{wanted}")
            rows = session.finish(name)
            where = f"{dtype}, after a hit of {found} rows, {name} images"
            want_same_bits(rows, _alone(subject, dtype, prompt)[found:], where)
            session.drop(name)


def images_matter(subject: Subject) -> None:
    """Another image changes every row from its place on, and none before it."""
    first = subject.image_prompt(num_images=2)
    start = first.images[0].start
    other = attrs.evolve(first, images=(_as_place(subject, first, 0, seed=9), first.images[1]))
    for dtype in subject.dtypes:
        one, two = (_alone(subject, dtype, prompt) for prompt in (first, other))
        want_same_bits(two[:start], one[:start], f"{dtype}, rows before the first image")
        same = (one[start:] == two[start:]).all(1)
        rows = (start + same.nonzero()[:, 0]).tolist()
        want(not rows, f"{dtype}: equal rows {rows[:6]}", "rows that depend on the image")


def images_are_refused_by_name(subject: Subject) -> None:
    """Images where none are served, and too many or too few, are refused; the others run."""
    greedy = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    text = subject.tokens(5)
    image = ImageFeatures(pixel_values=torch.zeros(4, 3, 1, 1), grid_thw=(1, 2, 2))
    wrong: list[tuple[list[int], list[ImageFeatures]]] = [(text, [image])]
    if subject.image_processor is not None:
        placeholder = subject.image_processor.placeholder_token_id
        wrong += [([*text, placeholder], []), ([*text, placeholder], [image, image])]
    with subject.llm() as llm:
        (alone,) = llm.generate([text], greedy, progress=False)
        for tokens, images in wrong:
            prompts: list[Prompt] = [text, {"prompt": tokens, "images": images}, text]
            outputs = llm.generate(prompts, greedy, progress=False)
            reasons = [output.finish_reason for output in outputs]
            want(
                reasons == ["length", "error", "length"] and "image" in str(outputs[1].error),
                f"{reasons}, {outputs[1].error!r}, for {len(images)} images",
                "an error that says images for the second only",
            )
            for output in (outputs[0], outputs[2]):
                want(output.token_ids == alone.token_ids, "another text beside it", "the same")
            with want_raised(RequestError, f"{len(images)} images were scored", "a RequestError"):
                llm.score(prompts[1])


def _alone(
    subject: Subject, dtype: str, prompt: ImagePrompt, chunks: Sequence[int] = ()
) -> torch.Tensor:
    return subject.alone(prompt.tokens, dtype, images=prompt.images, chunks=chunks)


def _as_place(subject: Subject, prompt: ImagePrompt, place: int, *, seed: int) -> PlacedImage:
    """An image of other pixels where the prompt has its image `place`."""
    old = prompt.images[place]
    new = subject.image_prompt(num_images=len(prompt.images), seed=seed).images[place]
    return attrs.evolve(new, start=old.start, num_tokens=old.num_tokens)
