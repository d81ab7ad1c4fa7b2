"""The page's wiring: gradio components and events around what ``view``, ``live`` and ``exports`` do."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

import gradio as gr
from gradio.components.plot import PlotData

from paretomerge.app import panels
from paretomerge.app.exports import export
from paretomerge.app.live import Live
from paretomerge.app.simplex import at_place, moved
from paretomerge.app.view import ALL, CHECKPOINT, KNEE, LORA, TWO, UNCHOSEN, WHOLE, Fields, Shown, View, head_of, preference_of
from paretomerge.errors import UserError
from paretomerge.experts.heads import NO_HEAD
from paretomerge.io.strict_json import compact_json
from paretomerge.preferences import Preference, priority_in_words
from paretomerge.report.figures import Figure
from paretomerge.report.tables import title

# One request and its answer for what is light; the queue with its stream of events is for the model. A slider's moves while an
# answer is under way come to one more request, with the last value.
_LIGHT: dict[str, Any] = {
    "show_progress": "hidden", "trigger_mode": "always_last", "queue": False, "api_visibility": "private",
}  # fmt: skip
_HEAVY: dict[str, Any] = {"show_progress": "minimal", "concurrency_limit": 1, "api_visibility": "private"}


class _Controls(NamedTuple):
    sliders: list[gr.Slider]
    triangle: list[gr.HTML]
    """One, for three tasks."""
    presets: list[tuple[gr.Button, str]]
    menus: list[tuple[gr.Dropdown, str]]
    bounds: list[gr.Textbox]
    maximise: gr.Dropdown | None
    find: gr.Button | None
    news: gr.HTML


def page(view: View, live: Live) -> gr.Blocks:
    """The page. A visitor's preference is in a ``gr.State``, so visitors do not meet; ``live`` has a lock of its own."""
    with gr.Blocks(title=f"{title(view.front)} · paretomerge", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gamma = gr.State(view.equal)
        link = gr.Textbox(visible="hidden", elem_id="link")
        _html(panels.heading(view.front), "heading")
        with gr.Row(equal_height=False, elem_id="steer"):  # page.css places the three: on a phone one below the other
            with gr.Column(elem_id="wish", min_width=0):
                sliders, triangle, presets, menus = _wish(view)
            with gr.Column(elem_id="bought", min_width=0):
                table, plot, choices, news = _shown(view)
            with gr.Column(elem_id="demand", min_width=0):
                controls = _Controls(sliders, triangle, presets, menus, *_demand(view), news)
        with gr.Tabs():
            with gr.Tab("Try it"):
                _try(view, live, gamma)
            with gr.Tab("Export"):
                name, export_choices = _export(view, gamma)
            with gr.Tab("About this front"):
                _html(panels.about(view.front), "about")
        outputs = [gamma, link, *controls.sliders, *controls.triangle, table, plot, controls.news, name]
        _steer(blocks, view, controls, [*choices, *export_choices], outputs, gamma, link)
    return blocks


def _steer(
    blocks: gr.Blocks,
    view: View,
    controls: _Controls,
    choices: list[gr.components.Component],
    outputs: list[Any],
    gamma: gr.State,
    link: gr.Textbox,
) -> None:
    """The events that move the preference, or choose what is drawn of it."""
    inputs = [gamma, *choices]
    light = _LIGHT | {"outputs": outputs}

    def put(shown: Shown, moving: int | None = None) -> list[Any]:
        shares: list[Any] = list(shown.shares)
        if moving is not None:
            shares[moving] = gr.skip()  # the finger is on it
        triangle = [shown.triangle] if controls.triangle else []
        return [
            shown.gamma,
            shown.address,
            *shares,
            *triangle,
            shown.table,
            _drawn(shown.figure),
            shown.news,
            shown.export_name,
        ]

    def go(to: Callable[[], tuple[Preference, str]], now: Preference, fields: tuple[str, ...]) -> list[Any]:
        """Where a button leads; if it leads nowhere, the news say why."""
        try:
            found, news = to()
        except UserError as error:
            return put(view.shown(now, Fields(*fields), panels.message(str(error))))
        return put(view.shown(found, Fields(*fields), panels.message(news, good=True)))

    def same(now: Preference, *fields: str) -> list[Any]:
        return put(view.shown(now, Fields(*fields)))

    for k, slider in enumerate(controls.sliders):

        def slid(now: Preference, share: float | None, *fields: str, k: int = k) -> list[Any]:
            return put(view.shown(moved(now, k, (share or 0.0) / 100), Fields(*fields)), moving=k)

        slider.input(slid, [gamma, slider, *choices], **light)
    for button, preset in controls.presets:

        def pressed(now: Preference, *fields: str, preset: str = preset) -> list[Any]:
            return go(lambda: view.named(preset), now, fields)

        button.click(pressed, inputs, **light)
    for menu, kind in controls.menus:

        def picked(task: str | None, now: Preference, *fields: str, kind: str = kind) -> list[Any]:
            return [*(go(lambda: view.named(f"{kind}:{task}"), now, fields) if task else same(now, *fields)), ""]

        menu.input(picked, [menu, *inputs], **(light | {"outputs": [*outputs, menu]}))
    if controls.triangle:

        def clicked(now: Preference, figure: str, x: str, y: str, head: str, kind: str, event: gr.EventData) -> list[Any]:
            at = (getattr(event, "x", None), getattr(event, "y", None))
            to = at_place(float(at[0]), float(at[1])) if None not in at else now  # type: ignore[arg-type]
            return same(to, figure, x, y, head, kind)

        controls.triangle[0].click(clicked, inputs, **light)
    if controls.find and controls.maximise:

        def sought(maximise: str, now: Preference, *given: Any) -> list[Any]:
            fields, bounds = given[: len(choices)], given[len(choices) :]
            return go(lambda: view.best(maximise, bounds), now, fields)

        controls.find.click(sought, [controls.maximise, *inputs, *controls.bounds], **light)
    for choice in choices:
        choice.input(same, inputs, **light)  # type: ignore[attr-defined]

    def opened(address: str, *fields: str) -> list[Any]:
        return go(lambda: view.named(address or "equal"), view.equal, fields)

    # The preference is the address's fragment, so that a page that is loaded again, or whose address is sent, keeps it. It is
    # no query: plotly's clip paths name the address less its fragment.
    fragment = (
        "(_, ...rest) => { try { return [decodeURIComponent(location.hash.slice(1)), ...rest] } "
        "catch { return ['', ...rest] } }"
    )
    blocks.load(opened, [link, *choices], js=fragment, **light)
    link.change(None, link, js="p => { history.replaceState(null, '', '#' + encodeURIComponent(p)) }")


def _wish(view: View) -> tuple[Any, ...]:
    """Sliders, triangle and presets."""
    tasks = view.tasks
    first = view.shown(view.equal, view.first)
    how = "In %; moving one takes from the others or gives to them."
    if len(tasks) == 3:
        how += " Or click in the triangle, whose dots are the measured preferences."
    _html(panels.subtitle("How much should each task count?", how), "ask-wish")
    with gr.Group():
        sliders = [
            gr.Slider(
                0, 100, value=share, step=0.1, label=task, elem_id=f"share-{k}", buttons=[],
                interactive=len(tasks) > 1,
            )
            for k, (task, share) in enumerate(zip(tasks, first.shares, strict=True))
        ]  # fmt: skip
    triangle = []
    if len(tasks) == 3:
        script = files("paretomerge.app").joinpath("triangle.js").read_text(encoding="utf-8")
        triangle = [gr.HTML(first.triangle, js_on_load=script, elem_id="triangle", apply_default_css=False)]
    with gr.Row():
        presets = [(gr.Button("All alike", size="sm", min_width=60, elem_id="equal"), "equal")]
        if view.measured.complete:
            presets.append((gr.Button("Best trade-off (knee)", size="sm", min_width=60, elem_id="knee"), KNEE))
    most = priority_in_words(len(tasks))
    with gr.Row():
        menus = [
            (gr.Dropdown([("task …", ""), *tasks], value="", label=label, min_width=120, elem_id=kind), kind)
            for kind, label in (("priority", f"{most.capitalize()} to one task"), ("only", "All to one task"))
        ]
    return sliders, triangle, presets, menus


def _demand(view: View) -> tuple[list[gr.Textbox], gr.Dropdown | None, gr.Button | None]:
    """Constraints, where something is measured to meet them with."""
    known = view.measured
    bounds: list[gr.Textbox] = []
    if not known.complete:
        return bounds, None, None
    _html(
        panels.subtitle("Or say what you need", f"Finds the best of the {len(known.complete)} measured preferences."),
        "ask-demand",
    )
    with gr.Accordion("Good enough at some tasks, best at one", open=len(known.shown) <= 4, elem_id="constraints"):
        with gr.Row():
            for k, task in enumerate(known.shown):
                metric = known.metrics[task]
                label = f"{task}, at {'least' if metric.sign > 0 else 'most'}{' %' if metric.percent else ''}"
                bounds.append(gr.Textbox(label=label, placeholder="any", min_width=130, max_lines=1, elem_id=f"bound-{k}"))
        with gr.Row():
            maximise = gr.Dropdown(list(known.shown), value=known.shown[0], label="best at", min_width=120, elem_id="maximise")
            find = gr.Button("Find", variant="primary", min_width=60, elem_id="find")
    return bounds, maximise, find


def _shown(view: View) -> tuple[gr.HTML, gr.Plot, list[gr.components.Component], gr.HTML]:
    """The table, the figure, what chooses the figure, and the place for news."""
    first = view.shown(view.equal, view.first)
    _html(panels.subtitle("How good is the model there?"), "ask-bought")
    news = _html("", "news")
    table = _html(first.table, "metrics")
    tasks = list(view.figure_tasks)
    with gr.Row(visible=len(tasks) > 2):
        figure = gr.Radio([TWO, ALL], value=TWO, label="figure", min_width=290, elem_id="view")
        x = gr.Dropdown(tasks, value=view.first.x, label="across", elem_id="across", min_width=90)
        y = gr.Dropdown(tasks, value=view.first.y, label="up", elem_id="up", min_width=90)
    # one figure: drawing it is most of what a move of a slider costs
    plot = gr.Plot(_drawn(first.figure), show_label=False, container=False, elem_id="figure")
    if view.measured.points:
        _html(panels.figure_note(len(tasks)), "figure-note")
    return table, plot, [figure, x, y], news


def _try(view: View, live: Live, gamma: gr.State) -> None:
    """Input and answer."""
    heads = live.heads
    if not heads:
        _html(panels.message("this page has no input for models of this kind"), "no-try")
        return
    kinds = set(heads.values())
    names = [task or WHOLE for task in heads]
    pictures, words = bool(kinds & {"image", "image and classes"}), bool(kinds & {"text", "prompt"})
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            head = gr.Dropdown(names, value=names[0], label="classifier of", visible=len(names) > 1, elem_id="head")
            image = gr.Image(
                type="pil", label="image", visible=pictures, height=260, sources=["upload", "clipboard"], elem_id="image",
                buttons=[],
            )  # fmt: skip
            text = gr.Textbox(label="prompt" if "prompt" in kinds else "text", lines=4, visible=words, elem_id="text")
            classes = gr.Textbox(label="classes, with commas between", visible="image and classes" in kinds, elem_id="classes")
            most = max(2, min(200, live.positions // 2))
            tokens = gr.Slider(
                1, most, value=min(40, most), step=1, label="new tokens", visible="prompt" in kinds, elem_id="tokens"
            )
            ask = gr.Button("Ask the model at this preference", variant="primary", elem_id="ask")
        with gr.Column(min_width=300):
            said = _html(
                "<p class='pm-note'>The answer appears here, and how long the model took to move to this preference.</p>",
                "answer",
            )

    def asked(now: Preference, name: str, picture: Any, typed: str, listed: str, new: float) -> str:
        try:
            which = head_of(name)
            given = picture if heads[which] in ("image", "image and classes") else typed
            named = [c.strip() for c in (listed or "").split(",") if c.strip()]
            return panels.answer(
                live.ask(now, which, given, classes=named, new_tokens=int(new)), preference_of(view.tasks, now)
            )
        except UserError as error:
            return panels.message(str(error))

    gr.on([ask.click, image.upload], asked, [gamma, head, image, text, classes, tokens], said, **_HEAVY)


def _export(view: View, gamma: gr.State) -> tuple[gr.Textbox, list[gr.components.Component]]:
    """A folder under the front; the name's field, and what chooses the head and the kind."""
    front = view.front
    heads = [UNCHOSEN, *sorted(front.heads), WHOLE] if front.heads else [WHOLE]
    kinds = [CHECKPOINT, *([LORA] if front.pareto_set.low_rank else [])]
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            kind = gr.Radio(kinds, value=CHECKPOINT, label="write this preference's model as a", elem_id="export-kind")
            head = gr.Dropdown(
                heads, value=heads[0], label="with the classification head of", visible=len(heads) > 1, elem_id="export-head"
            )
            first = view.shown(view.equal, view.first).export_name
            label = "name of its folder, under exports/ in the front's folder"
            name = gr.Textbox(first, label=label, max_lines=1, elem_id="export-name")
            button = gr.Button("Write it", variant="primary", elem_id="write")
        with gr.Column(min_width=300):
            news = _html("", "exported")

    def wrote(now: Preference, which: str, what: str, called: str | None) -> str:
        if which == UNCHOSEN:
            return panels.message("choose first whose classification head the model gets")
        try:
            head = NO_HEAD if which == WHOLE else which
            folder = export(front, now, called or "", lora=what == LORA, head=head)
        except UserError as error:
            return panels.message(str(error))
        except OSError as error:  # a full disk
            return panels.message(f"cannot be written ({error.strerror or error})")
        return panels.message(f"written: {folder}", good=True)

    button.click(wrote, [gamma, head, kind, name], news, **_HEAVY)
    return name, [head, kind]


def _html(value: str, elem_id: str) -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id, apply_default_css=False)


def _drawn(figure: Figure) -> PlotData:
    """A figure as gradio sends it, without plotly's checks, which take longer than all else."""
    return PlotData(type="plotly", plot=compact_json(figure))
