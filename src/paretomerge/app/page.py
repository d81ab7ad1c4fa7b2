"""The page's wiring: gradio components and events around the pure functions beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import gradio as gr
from gradio.components.plot import PlotData

from paretomerge import preferences
from paretomerge.app import panels
from paretomerge.app.exports import export, free_name
from paretomerge.app.live import Live
from paretomerge.app.simplex import at_place, moved, percentages
from paretomerge.errors import UserError
from paretomerge.evaluation.queries import best_with, knee
from paretomerge.front import Front
from paretomerge.preferences import Preference
from paretomerge.report.figures import pair, parallel
from paretomerge.report.tables import Measured, measured
from paretomerge.sets.low_rank import LowRank


class Page:
    """What the events share: the front (never changed), its measured rows, the live model under its lock.

    A visitor's preference is in a ``gr.State``, so visitors do not meet.
    """

    def __init__(self, front: Front, live: Live) -> None:
        self.front = front
        self.live = live
        self.tasks = front.tasks
        self.measured: Measured = measured(front.measured, front.tasks, front.pareto_set.method)
        self.equal = preferences.equal(len(self.tasks))

    def blocks(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(title="paretomerge", analytics_enabled=False) as blocks:
            gamma = gr.State(self.equal)
            gr.HTML(panels.heading(self.front), elem_id="heading", apply_default_css=False)
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=320):
                    controls = self._controls()
                with gr.Column(scale=7, min_width=420):
                    shown = self._shown()
            with gr.Tabs():
                with gr.Tab("Try it", id="try"):
                    self._try(gamma)
                with gr.Tab("Export", id="export"):
                    export_name, export_head, export_kind = self._export(gamma)
                with gr.Tab("About this front", id="about"):
                    gr.HTML(panels.about(self.front), elem_id="about", apply_default_css=False)

            link = gr.Textbox(visible="hidden", elem_id="link")
            outputs = [
                gamma,
                link,
                *controls["sliders"],
                *controls["triangle"],
                *shown["outputs"],
                controls["news"],
                export_name,
            ]

            def show(
                now: Preference, view: str, x: str, y: str, head: str, kind: str, news: str = "", moving: int | None = None
            ) -> list[Any]:
                values = self.measured.at(now)
                shares: list[Any] = percentages(now)
                if moving is not None:
                    shares[moving] = gr.skip()  # the finger is on it
                return [
                    now, self._address(now), *shares, *([panels.triangle(self.measured, now)] if controls["triangle"] else []),
                    panels.metrics(self.measured, now, values), self._figure(values, view, x, y), news,
                    free_name(self.front, now, self._head(head), lora=kind == _LORA),
                ]  # fmt: skip

            light: dict[str, Any] = {
                # one request and its answer; the queue with its stream of events is for the model
                "outputs": outputs, "show_progress": "hidden", "trigger_mode": "always_last", "queue": False,
            }  # fmt: skip
            rest = [*shown["inputs"], export_head, export_kind]

            def slid(k: int, now: Preference, share: float | None, *others: str) -> list[Any]:
                return show(moved(now, k, (share or 0.0) / 100), *others, moving=k)

            for k, slider in enumerate(controls["sliders"]):
                slider.input(partial(slid, k), [gamma, slider, *rest], api_visibility="private", **light)
                slider.release(show, [gamma, *rest], api_visibility="private", **light)

            def preset(text: str | None, now: Preference, *others: str) -> list[Any]:
                try:
                    if text == _KNEE:
                        found = knee(self._own_rows(), self.measured.shown or self.tasks)
                        return show(self._parsed(found.preference), *others, news=panels.message(
                            f"the knee of {found.points} measured preferences", good=True))  # fmt: skip
                    return show(self._parsed(text) if text else now, *others)
                except UserError as error:
                    return show(now, *others, news=panels.message(str(error)))

            for button, text in controls["buttons"]:
                button.click(partial(preset, text), [gamma, *rest], api_visibility="private", **light)
            for menu, kind in controls["menus"]:
                menu.input(
                    lambda task, now, *others, kind=kind: [*preset(f"{kind}:{task}" if task else None, now, *others), None],
                    [menu, gamma, *rest], api_visibility="private", **(light | {"outputs": [*outputs, menu]}),
                )  # fmt: skip

            def clicked(now: Preference, *others: str, event: gr.EventData) -> list[Any]:
                try:
                    return show(at_place(float(event.x), float(event.y)), *others)  # type: ignore[attr-defined]
                except (AttributeError, TypeError, ValueError):
                    return show(now, *others)

            def clicked_triangle(
                now: Preference, view: str, x: str, y: str, head: str, kind: str, event: gr.EventData
            ) -> list[Any]:
                return clicked(now, view, x, y, head, kind, event=event)

            for area in controls["triangle"]:
                area.click(clicked_triangle, [gamma, *rest], api_visibility="private", **light)

            def constrained(maximise: str, now: Preference, *fields: Any) -> list[Any]:
                others, bounds = fields[: len(rest)], fields[len(rest) :]
                at_least = {
                    task: bound / 100 if self.measured.metrics[task].percent else bound
                    for task, bound in zip(self.measured.shown, bounds, strict=True)
                    if bound is not None
                }
                try:
                    found = best_with(self._own_rows(), self.tasks, at_least=at_least, maximise=maximise)
                except UserError as error:
                    return show(now, *others, news=panels.message(str(error)))
                value = self.measured.metrics[maximise].text(found.values[maximise])
                news = panels.message(f"best {maximise} of {found.points} measured preferences: {value}", good=True)
                return show(self._parsed(found.preference), *others, news=news)

            if controls["find"]:
                controls["find"].click(
                    constrained, [controls["maximise"], gamma, *rest, *controls["bounds"]], api_visibility="private", **light
                )
            for menu in shown["inputs"]:
                menu.input(show, [gamma, *rest], api_visibility="private", **light)
            for field in (export_head, export_kind):
                field.input(
                    lambda now, _view, _x, _y, head, kind: free_name(self.front, now, self._head(head), lora=kind == _LORA),
                    [gamma, *rest], export_name, show_progress="hidden", api_visibility="private",
                )  # fmt: skip

            def opened(wanted: str, *others: str) -> list[Any]:
                """The page of a link, or one that is loaded again: ``#math=0.7,code=0.3``."""
                try:
                    return show(self._parsed(wanted) if wanted else self.equal, *others)
                except UserError as error:
                    return show(self.equal, *others, news=panels.message(str(error)))

            # The preference is the address's fragment: plotly's clip paths do not survive other changes of the address.
            fragment = "(_, ...others) => [decodeURIComponent(location.hash.slice(1)), ...others]"
            blocks.load(opened, [link, *rest], js=fragment, api_visibility="private", **light)
            link.change(None, link, js="p => { history.replaceState(null, '', '#' + encodeURIComponent(p)) }")
        return blocks

    def _controls(self) -> dict[str, Any]:
        """Sliders, presets, triangle, constraints."""
        found: dict[str, Any] = {"triangle": [], "find": None}
        shares = percentages(self.equal)
        with gr.Group():
            found["sliders"] = [
                gr.Slider(
                    0, 100, value=share, step=0.1, label=f"{task}, % of the preference", elem_id=f"share-{k}",
                    interactive=len(self.tasks) > 1, buttons=[],
                )
                for k, (task, share) in enumerate(zip(self.tasks, shares, strict=True))
            ]  # fmt: skip
        if len(self.tasks) == 3:
            script = files("paretomerge.app").joinpath("triangle.js").read_text(encoding="utf-8")
            found["triangle"] = [
                gr.HTML(
                    panels.triangle(self.measured, self.equal), js_on_load=script, elem_id="triangle", apply_default_css=False
                )
            ]
        with gr.Row():
            found["buttons"] = [(gr.Button("Equal", size="sm", min_width=60, elem_id="equal"), "equal")]
            if self.measured.complete:
                found["buttons"].append((gr.Button("Knee", size="sm", min_width=60, elem_id="knee"), _KNEE))
        with gr.Row():
            found["menus"] = [
                (gr.Dropdown(list(self.tasks), value=None, label=label, min_width=120, elem_id=kind), kind)
                for kind, label in (("priority", "Half to"), ("only", "All to"))
            ]
        if self.measured.complete:
            with gr.Accordion("Good enough at …, best at …", open=len(self.tasks) <= 4, elem_id="constraints"):
                found["bounds"] = []
                with gr.Row():
                    for k, task in enumerate(self.measured.shown):
                        metric = self.measured.metrics[task]
                        most = "at least" if metric.sign > 0 else "at most"
                        unit = ", %" if metric.percent else ""
                        found["bounds"].append(
                            gr.Number(value=None, label=f"{task} {most}{unit}", min_width=110, elem_id=f"bound-{k}")
                        )
                with gr.Row():
                    shown = list(self.measured.shown)
                    found["maximise"] = gr.Dropdown(shown, value=shown[0], label="best at", min_width=120, elem_id="maximise")
                    found["find"] = gr.Button("Find", variant="primary", size="sm", min_width=60, elem_id="find")
        found["news"] = gr.HTML("", elem_id="news")
        return found

    def _shown(self) -> dict[str, Any]:
        """The table and the figure."""
        values = self.measured.at(self.equal)
        table = gr.HTML(panels.metrics(self.measured, self.equal, values), elem_id="metrics", apply_default_css=False)
        tasks = list(self.measured.shown or self.tasks)
        x, y = tasks[0], tasks[min(1, len(tasks) - 1)]
        with gr.Row(visible=len(tasks) > 2):
            view = gr.Radio([_TWO, _ALL], value=_TWO, label="figure", min_width=190, elem_id="view")
            pairs = [
                gr.Dropdown(tasks, value=value, label=label, elem_id=label, min_width=120)
                for value, label in ((x, "across"), (y, "up"))
            ]
        # one figure: drawing it is most of what a move of a slider costs
        plot = gr.Plot(self._figure(values, _TWO, x, y), show_label=False, container=False, elem_id="figure")
        return {"outputs": [table, plot], "inputs": [view, *pairs]}

    def _try(self, gamma: gr.State) -> None:
        """Input and answer."""
        heads = self.live.heads
        if not heads:
            gr.HTML(panels.message("the page has no input for models of this kind"), elem_id="no-try")
            return
        kinds = set(heads.values())
        names = [task or _WHOLE for task in heads]
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                head = gr.Dropdown(names, value=names[0], label="model", visible=len(names) > 1, elem_id="head")
                image = gr.Image(type="pil", label="image", visible=bool(kinds & {"image", "image and classes"}), height=260,
                                 sources=["upload", "clipboard"], elem_id="image")  # fmt: skip
                text = gr.Textbox(label="prompt" if "prompt" in kinds else "text", lines=4, elem_id="text",
                                  visible=bool(kinds & {"text", "prompt"}))  # fmt: skip
                classes = gr.Textbox(
                    label="classes, with commas between", visible="image and classes" in kinds, elem_id="classes"
                )
                tokens = gr.Slider(1, 200, value=40, step=1, label="new tokens", visible="prompt" in kinds, elem_id="tokens")
                ask = gr.Button("Ask the model at this preference", variant="primary", elem_id="ask")
            with gr.Column(min_width=300):
                said = gr.HTML(panels.message("its answer appears here", good=True), elem_id="answer", apply_default_css=False)

        def asked(now: Preference, name: str, picture: Any, words: str, listed: str, new: float) -> str:
            try:
                which = self._head(name)
                given = picture if heads[which] in ("image", "image and classes") else words
                found = self.live.ask(
                    now, which, given, classes=[c.strip() for c in (listed or "").split(",") if c.strip()], new_tokens=int(new)
                )
            except UserError as error:
                return panels.message(str(error))
            return panels.answer(found)

        # one at a time: the model is one
        gr.on(
            [ask.click, text.submit, image.upload], asked, [gamma, head, image, text, classes, tokens], said,
            concurrency_limit=1, show_progress="minimal", api_visibility="private",
        )  # fmt: skip

    def _export(self, gamma: gr.State) -> tuple[gr.Textbox, gr.Dropdown, gr.Radio]:
        """A folder under the front."""
        heads = [_WHOLE, *sorted(self.front.heads)]
        kinds = [_CHECKPOINT, *([_LORA] if isinstance(self.front.pareto_set, LowRank) else [])]
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                kind = gr.Radio(kinds, value=_CHECKPOINT, label="what", elem_id="export-kind")
                head = gr.Dropdown(heads, value=_WHOLE, label="head", visible=len(heads) > 1, elem_id="export-head")
                name = gr.Textbox(
                    free_name(self.front, self.equal, None, lora=False), label="name of the folder, under exports/ of the front",
                    elem_id="export-name", max_lines=1,
                )  # fmt: skip
                button = gr.Button("Write it", variant="primary", elem_id="write")
            with gr.Column(min_width=300):
                news = gr.HTML("", elem_id="exported")

        def wrote(now: Preference, which: str, what: str, called: str) -> str:
            try:
                folder = export(self.front, now, called or "", lora=what == _LORA, head=self._head(which))
            except UserError as error:
                return panels.message(str(error))
            except OSError as error:
                return panels.message(f"cannot be written ({error.strerror or error})")
            return panels.message(f"written: {folder}", good=True)

        button.click(wrote, [gamma, head, kind, name], news, concurrency_limit=1, show_progress="minimal",
                     api_visibility="private")  # fmt: skip
        return name, head, kind

    def _figure(self, values: dict[str, tuple[float, bool]], view: str, x: str, y: str) -> Any:
        """As gradio sends it, without plotly's checks, which take longer than all else."""
        drawn = pair(self.measured, x, y, current=values) if view == _TWO else parallel(self.measured, current=values)
        return PlotData(type="plotly", plot=json.dumps(drawn))

    def _own_rows(self) -> Sequence[Any]:
        """Rows of the set alone, as the queries want them."""
        return [row for row in self.front.measured if row["method"] == self.front.pareto_set.method] or self.front.measured

    def _address(self, gamma: Preference) -> str:
        """Short, and parsed to the same preference but for the seventh digit."""
        return ",".join(f"{task}={round(share, 6):g}" for task, share in zip(self.tasks, gamma, strict=True))

    def _parsed(self, text: str) -> Preference:
        return preferences.parse(text, self.tasks)

    def _head(self, name: str) -> str | None:
        return None if name == _WHOLE else name


_KNEE, _WHOLE, _CHECKPOINT, _LORA = "knee", "(the base’s own class)", "Hugging Face folder", "LoRA adapter"
_TWO, _ALL = "two tasks", "all tasks"
