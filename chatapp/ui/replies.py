"""Settings of replies: how tokens are drawn, and the role of the model; for one conversation or for new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import gradio as gr
from pydantic import ValidationError

from models import Sampling

from ..choices import LONGEST_ROLE, Role
from ..preferences import Preferences
from ..sentences import Sentence
from ..texts import say
from .section import QUIET, Label, Parts, Section, complain, only, status

Number = float | None

#: For each number: its text and a sentence on it, the least and the greatest there may be, and its steps.
NUMBERS: Mapping[str, tuple[str, str, float, float, float]] = {
    "temperature": ("set_temperature", "set_temperature_info", 0, 2, 0.05),
    "top_p": ("set_top_p", "set_top_p_info", 0.01, 1, 0.05),
    "top_k": ("set_top_k", "set_top_k_info", 0, 1000, 1),
    "repetition_penalty": ("set_penalty", "set_penalty_info", 0.5, 2, 0.05),
    "max_tokens": ("set_max_tokens", "set_max_tokens_info", 16, 32768, 16),
    "seed": ("set_seed", "set_seed_info", 0, 2**53, 1),
}
WHOLE = ("top_k", "max_tokens", "seed")
#: Roles that come with the app: their names, and what they tell the model.
BUILT_IN = {
    "role_translator": "role_translator_prompt",
    "role_explainer": "role_explainer_prompt",
    "role_minutes": "role_minutes_prompt",
    "role_reviewer": "role_reviewer_prompt",
}

OPENED = (*NUMBERS, "replies_note", "role", "role_name", "system", "role_note")


def layout_sampling(label: Label) -> Parts:
    gr.HTML(f'<p class="hint">{label("set_sampling_info")}</p>')
    parts: Parts = {}
    with gr.Row(elem_classes="numbers"):
        for name, (text, info, _, _, step) in NUMBERS.items():
            parts[name] = gr.Number(
                label=label(text), info=label(info), step=step, elem_id=f"set-{name.replace('_', '-')}"
            )
    with gr.Row():
        parts["replies_here"] = gr.Button(label("set_here"), variant="primary", size="sm", elem_id="replies-here")
        parts["replies_new"] = gr.Button(label("set_for_new"), size="sm", elem_id="replies-new")
        parts["replies_reset"] = gr.Button(label("set_recommended_again"), size="sm", elem_id="replies-reset")
    return parts | {"replies_note": gr.HTML(elem_id="replies-note")}


def layout_role(label: Label) -> Parts:
    gr.HTML(f'<p class="hint">{label("set_role_info")}</p>')
    role = gr.Dropdown([], label=label("role"), interactive=True, elem_id="role")
    system = gr.Textbox(
        label=label("system"), placeholder=label("system_none"), lines=6, max_lines=12, elem_id="system"
    )
    with gr.Row():
        here = gr.Button(label("set_here"), variant="primary", size="sm", elem_id="role-here")
        new = gr.Button(label("set_for_new"), size="sm", elem_id="role-new")
    name = gr.Textbox(label=label("role_name"), info=label("role_name_info"), max_lines=1, elem_id="role-name")
    with gr.Row():
        save = gr.Button(label("role_save"), size="sm", elem_id="role-save")
        rename = gr.Button(label("role_rename"), size="sm", elem_id="role-rename")
        delete = gr.Button(label("role_delete"), size="sm", elem_id="role-delete")
    return {
        "role": role,
        "role_name": name,
        "system": system,
        "role_here": here,
        "role_new": new,
        "role_save": save,
        "role_rename": rename,
        "role_delete": delete,
        "role_note": gr.HTML(elem_id="role-note"),
    }


def connect(parts: Parts, replies: Replies) -> None:
    each = {**QUIET, "trigger_mode": "multiple"}  # else a click is passed over while the one before is at work
    numbers = only(parts, *NUMBERS)
    told, kept = only(parts, "replies_note"), only(parts, "conversation", "replies_note")
    parts["replies_here"].click(replies.keep, [parts["conversation"], *numbers], kept, **each)
    parts["replies_new"].click(replies.keep_for_new, numbers, told, **each)
    parts["replies_reset"].click(replies.reset, only(parts, "conversation"), [*kept, *numbers], **each)
    parts["role"].input(replies.choose_role, only(parts, "role"), only(parts, "role_name", "system"), **QUIET)
    told, kept = only(parts, "role_note"), only(parts, "conversation", "role_note")
    parts["role_here"].click(replies.keep_system, only(parts, "conversation", "system"), kept, **each)
    parts["role_new"].click(replies.keep_system_for_new, only(parts, "system"), told, **each)
    changed = only(parts, "role", "role_note")
    parts["role_save"].click(replies.save_role, only(parts, "role_name", "system"), changed, **each)
    parts["role_rename"].click(replies.rename_role, only(parts, "role", "role_name"), changed, **each)
    parts["role_delete"].click(replies.delete_role, only(parts, "role"), changed, **each)


class Replies(Section):
    def open(self, conversation: str | None, request: gr.Request) -> tuple[Any, ...]:
        """OPENED, as the conversation has it."""
        language, wanted = self.language(request), self._chat.preferences(conversation)
        system = wanted.system or ""
        name = next((name for name, text in self._roles(language).items() if text == system), "")
        return *self._numbers(wanted, language), "", self._role_box(name, language), name, system, ""

    def _numbers(self, wanted: Preferences, language: str) -> list[Any]:
        recommended = self._recommended(language)
        return [gr.update(value=getattr(wanted, name), placeholder=recommended[name]) for name in NUMBERS]

    def _recommended(self, language: str) -> dict[str, str]:
        """What holds where nothing is chosen."""
        given = self._chat.engine.recommended
        drawn = asdict(Sampling(**given)) if given is not None else {}
        values = {name: say(language, "set_recommended", value=f"{value:g}") for name, value in drawn.items() if value}
        values |= {name: say(language, "set_off") for name in ("top_k",) if name in drawn and not drawn[name]}
        reply = say(language, "set_as_context", value=self._chat.chosen.policy.reply)
        others = {"max_tokens": reply, "seed": say(language, "set_random")}
        return {name: say(language, "set_by_model") for name in NUMBERS} | values | others

    def keep(
        self,
        conversation: str | None,
        temperature: Number,
        top_p: Number,
        top_k: Number,
        repetition_penalty: Number,
        max_tokens: Number,
        seed: Number,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        """Lets a conversation reply like this: its id, and what to say."""
        language = self.language(request)
        numbers = (temperature, top_p, top_k, repetition_penalty, max_tokens, seed)
        try:
            id = self._chat.prefer(conversation, **_checked(numbers, language))
        except Sentence as error:
            return gr.skip(), complain(error, language)
        return id, status(say(language, "set_kept_here"))

    def keep_for_new(
        self,
        temperature: Number,
        top_p: Number,
        top_k: Number,
        repetition_penalty: Number,
        max_tokens: Number,
        seed: Number,
        request: gr.Request,
    ) -> str:
        """Lets new conversations reply like this."""
        language = self.language(request)
        numbers = (temperature, top_p, top_k, repetition_penalty, max_tokens, seed)
        try:
            return self._keep_for_new(_checked(numbers, language), language)
        except Sentence as error:
            return complain(error, language)

    def reset(self, conversation: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Back to what the model recommends: as `keep`, and the numbers."""
        kept = self.keep(conversation, *(None for _ in NUMBERS), request)
        return *kept, *self._numbers(Preferences(), self.language(request))

    def choose_role(self, name: str, request: gr.Request) -> tuple[str, str]:
        """Shows a role: its name and system prompt."""
        return name, self._roles(self.language(request)).get(name, "")

    def keep_system(self, conversation: str | None, system: str, request: gr.Request) -> tuple[str, str]:
        """Gives a conversation its system prompt: its id, and what to say."""
        id = self._chat.prefer(conversation, system=_whole(system))
        return id, status(say(self.language(request), "set_kept_here"))

    def keep_system_for_new(self, system: str, request: gr.Request) -> str:
        language = self.language(request)
        try:
            return self._keep_for_new({"system": _whole(system)}, language)
        except Sentence as error:
            return complain(error, language)

    def save_role(self, name: str, system: str, request: gr.Request) -> tuple[Any, str]:
        """Keeps a role under a name, which may have had another prompt: the roles, and what to say."""
        language = self.language(request)
        return self._keep_roles(lambda: self._own({name.strip(): _role(name, system, language)}), name, language)

    def rename_role(self, role: str, name: str, request: gr.Request) -> tuple[Any, str]:
        """As `save_role`, under another name; one that comes with the app stays, and its copy is the user's."""
        language = self.language(request)

        def renamed() -> dict[str, Role]:
            roles = self._roles(language)
            if name.strip() != role and name.strip() in roles:
                raise Sentence("role_known", name=name.strip())
            changed = _role(name, roles.get(role, ""), language)
            return {key: value for key, value in self._own({}).items() if key != role} | {changed.name: changed}

        return self._keep_roles(renamed, name, language)

    def delete_role(self, role: str, request: gr.Request) -> tuple[Any, str]:
        """As `save_role`, without one."""
        language = self.language(request)

        def without() -> dict[str, Role]:
            if role not in self._own({}):
                raise Sentence("role_built_in")
            return {key: value for key, value in self._own({}).items() if key != role}

        return self._keep_roles(without, "", language)

    def _keep_for_new(self, changes: Mapping[str, Any], language: str) -> str:
        defaults = self._chat.chosen.now.defaults.model_copy(update=dict(changes))
        self._chat.choose_for_all(defaults=defaults)
        return status(say(language, "set_kept_new"))

    def _keep_roles(self, make: Callable[[], Mapping[str, Role]], name: str, language: str) -> tuple[Any, str]:
        try:
            self._chat.choose_for_all(roles=tuple(make().values()))
        except Sentence as error:
            return gr.skip(), complain(error, language)
        return self._role_box(name.strip(), language), status(say(language, "roles_kept"))

    def _own(self, more: Mapping[str, Role]) -> dict[str, Role]:
        return {role.name: role for role in self._chat.chosen.now.roles} | more

    def _roles(self, language: str) -> dict[str, str]:
        """All system prompts by name; the user's stand for those of the same name that come with the app."""
        built_in = {say(language, name): say(language, prompt) for name, prompt in BUILT_IN.items()}
        return {"": "", **built_in, **{role.name: role.system for role in self._own({}).values()}}

    def _role_box(self, name: str, language: str) -> Any:
        choices = [(key or say(language, "role_none"), key) for key in self._roles(language)]
        return gr.update(choices=choices, value=name)


def _checked(numbers: Sequence[Number], language: str) -> dict[str, float | int | None]:
    """Preferences by name. Raises Sentence for a number that can't be."""
    found: dict[str, float | int | None] = {}
    for (name, (text, _, least, greatest, _)), value in zip(NUMBERS.items(), numbers, strict=True):
        if value is not None and not least <= value <= greatest:
            raise Sentence("set_range", name=say(language, text), least=f"{least:g}", greatest=f"{greatest:,g}")
        found[name] = int(value) if value is not None and name in WHOLE else value
    return found


def _role(name: str, system: str, language: str) -> Role:
    """Raises Sentence for what can't be one."""
    try:
        return Role(name=name.strip(), system=system.strip())
    except ValidationError as error:
        raise Sentence("role_incomplete", longest=LONGEST_ROLE) from error


def _whole(system: str) -> str | None:
    return Preferences(system=system.strip()).system or None
