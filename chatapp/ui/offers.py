"""Downloads as the page shows them: what is recommended, what a repository is, how far each download is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..checkpoints import FAMILIES
from ..downloads.hubs import RemoteFile
from ..downloads.jobs import RUNNING, Job, Progress
from ..downloads.offers import Choice, Offer
from ..downloads.recommend import Recommendation
from ..planner import explain
from ..texts import say
from .escaping import escape

SPEEDS = {"fast": "speed_fast", "steady": "speed_steady", "slow": "speed_slow"}

#: What can be done with a download in a state, by the key of its text.
DOING = {
    "waiting": {"pause": "download_pause", "delete": "download_delete"},
    "downloading": {"pause": "download_pause", "delete": "download_delete"},
    "verifying": {"pause": "download_pause"},
    "paused": {"resume": "download_resume", "delete": "download_delete"},
    "failed": {"resume": "download_resume", "delete": "download_delete"},
    "done": {"load": "download_load", "verify": "download_verify", "delete": "download_forget"},
}


def recommended(found: Sequence[Recommendation], language: str) -> str:
    """A card for each, with a button that looks it up."""
    if not found:
        return f'<p class="hint">{say(language, "recommended_none")}</p>'
    return f'<ul class="recommended">{"".join(_recommended(each, language) for each in found)}</ul>'


def _recommended(found: Recommendation, language: str) -> str:
    facts = [size(found.size), str(found.plan.tier).upper(), say(language, SPEEDS[found.speed])]
    terms = [escape(found.licence)] + ([say(language, "gated_short")] if found.gated else [])
    got = button("get", found.checkpoint, say(language, "recommended_get"), f"{found.name}")
    lines = (" · ".join(facts), say(language, "licence_short", name=", ".join(terms)))
    shown = "".join(f"<p>{line}</p>" for line in lines)
    return f"<li><h3>{escape(found.name)}</h3>{shown}{got}</li>"


def offer(found: Offer, chosen: int, free: int, language: str) -> str:
    """What a repository is, with the choice that is made: facts, files, licence."""
    choice = found.choices[chosen]
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in _facts(found, choice, free, language))
    title = f"<h3>{escape(found.repository.id)}</h3>"
    return f'{title}<dl class="facts">{rows}</dl>{_files(choice, language)}{_terms(found, language)}'


def _facts(found: Offer, choice: Choice, free: int, language: str) -> Iterator[tuple[str, str]]:
    if found.base is not None:
        yield say(language, "offer_model"), say(language, "offer_adapter", name=escape(found.base or "?"))
    else:
        family = escape(FAMILIES[found.family or ""])
        parameters = found.parameters
        told = "" if parameters is None else say(language, "offer_parameters", count=_parameters(parameters))
        yield say(language, "offer_model"), f"{family}{told}"
    count, total = len(choice.variant.files), size(choice.variant.size)
    yield say(language, "offer_download"), say(language, "offer_size", size=total, count=count)
    yield say(language, "offer_disk"), _disk(choice, free, language)
    if choice.plan is not None:
        yield say(language, "offer_here"), escape(explain(choice.plan, language))
    yield say(language, "offer_licence"), _licence(found, language)
    yield say(language, "offer_revision"), f"<code>{escape(found.repository.revision[:12])}</code>"


def _disk(choice: Choice, free: int, language: str) -> str:
    needed = {"needed": size(choice.disk), "free": size(free)}
    if not choice.copy or choice.plan is None:
        return say(language, "offer_room", **needed)
    return say(language, "offer_room_copy", tier=str(choice.plan.tier).upper(), copy=size(choice.copy), **needed)


def _licence(found: Offer, language: str) -> str:
    name = escape(found.repository.licence) or say(language, "licence_none")
    return f"{name} · {say(language, 'gated')}" if found.repository.gated else name


def _files(choice: Choice, language: str) -> str:
    def row(file: RemoteFile) -> str:
        return f"<tr><td>{escape(file.name)}</td><td>{size(file.size)}</td></tr>"

    rows = "".join(row(file) for file in choice.variant.files)
    return f'<details class="files"><summary>{say(language, "offer_files")}</summary><table>{rows}</table></details>'


def _terms(found: Offer, language: str) -> str:
    if not found.terms:
        return ""
    heading = say(language, "licence_text")
    return f'<details class="terms"><summary>{heading}</summary><pre tabindex="0">{escape(found.terms)}</pre></details>'


def choices(found: Offer) -> list[tuple[str, int]]:
    """What can be had of a repository, for a dropdown."""
    return [(_choice(choice), number) for number, choice in enumerate(found.choices)]


def _choice(choice: Choice) -> str:
    tier = "" if choice.plan is None else f" · {(choice.plan.tier or '-').upper()}"
    return f"{choice.variant.name} · {size(choice.variant.size)}{tier}"


def listed(found: Sequence[Progress], language: str) -> str:
    """All downloads with their states and what can be done with them."""
    if not found:
        return ""
    return f'<ul class="downloads">{"".join(_listed(each, language) for each in found)}</ul>'


def _listed(found: Progress, language: str) -> str:
    job = found.job
    doing = dict(DOING[job.state])
    if job.state == "done" and (found.path is None or job.form == "adapter"):
        doing.pop("load")
    if found.path is None:
        doing.pop("verify", None)
    asked = say(language, "download_sure", name=job.target) if job.state != "done" and found.done else ""
    buttons = "".join(
        button(do, job.id, say(language, key), job.target, asked if do == "delete" else "") for do, key in doing.items()
    )
    bar = "" if job.state in ("done", "failed") else _bar(found)
    return (
        f'<li class="{job.state}" data-id="{job.id}"><h3>{escape(job.target)}</h3>{bar}'
        f'<p class="hint">{_state(found, language)}</p><div class="doing">{buttons}</div></li>'
    )


def _bar(found: Progress) -> str:
    share = f'value="{found.done}" max="{max(found.job.size, 1)}"'
    return f'<progress {share} aria-label="{escape(found.job.target)}"></progress>'


def _state(found: Progress, language: str) -> str:
    job = found.job
    shown = {"done": size(found.done), "total": size(job.size)}
    if found.failure is not None:
        return f"⚠ {escape(found.failure.said(language))}"
    if found.retry is not None:
        again = say(language, "download_again", seconds=round(found.retry[0]))
        return f"⚠ {escape(found.retry[1].said(language))} {again}"
    if job.state == "done":
        return _finished(found, language)
    texts = {"waiting": "download_waiting", "paused": "download_paused", "verifying": "download_verifying"}
    if job.state in texts:
        return say(language, texts[job.state], **shown)
    line = say(language, "download_running", speed=f"{found.speed / 1e6:.1f}", **shown)
    return line if found.seconds is None else f"{line} · {left(found.seconds, language)}"


def _finished(found: Progress, language: str) -> str:
    if found.path is None:
        return say(language, "download_gone")
    text = "download_done_adapter" if found.job.form == "adapter" else "download_done"
    return say(language, text, total=size(found.job.size))


def left(seconds: float, language: str) -> str:
    """How long a download will still take."""
    if seconds < 90:
        return say(language, "left_seconds", count=max(round(seconds), 1))
    minutes = seconds / 60
    if minutes < 90:
        return say(language, "left_minutes", count=round(minutes))
    return say(language, "left_hours", count=f"{minutes / 60:.1f}")


def running(found: Sequence[Progress]) -> Job | None:
    """The download that is at work."""
    return next((each.job for each in found if each.job.state in RUNNING), None)


def size(count: int) -> str:
    """A file's size, for people."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} B"


def _parameters(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


def button(do: str, id: str, text: str, name: str, asked: str = "") -> str:
    """A button that scripts/pressed/pressed.js makes an event of, after asking whether that is meant."""
    confirm = f' data-sure="{escape(asked)}"' if asked else ""
    return (
        f'<button type="button" class="do {do}" data-do="{do}" data-id="{escape(id)}"{confirm} '
        f'aria-label="{escape(f"{text}: {name}")}">{text}</button>'
    )
