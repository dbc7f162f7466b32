"""Pages made of templates: HTML files that need nothing but themselves."""

import base64
import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from restore_jax.report.forms import change, defined, number, printable

Figures = Mapping[str, Any]
Form = Callable[[float | None], str]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        group: heading over this column and its neighbours of the same group.
        label: its own heading.
        value: takes the figure out of a row's.
        form: turns the figure into text.
    """

    group: str
    label: str
    value: Callable[[Figures], float | None]
    form: Form


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that can be sorted.

    Attributes:
        caption: what it shows; also the name of its scrolling box.
        first: heading of the first column, which holds the rows' names.
        columns: the others.
        rows: names, and what the columns take their figures out of.
        pinned: the same for rows that stay at the end.
        links: the id of the section that a row's name leads to.
    """

    caption: str
    first: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Any]]
    pinned: Sequence[tuple[str, Any]] = ()
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over the columns, and how many each is over; none where all are empty."""
        grouped = itertools.groupby(column.group for column in self.columns)
        groups = [(name, len(list(same))) for name, same in grouped]
        return groups if any(name for name, _ in groups) else []


def render(template: str, **fields: object) -> str:
    """Fills in a template of `templates`, which extends page.html.jinja."""
    script = _source("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template)
    return printable(page.render(script=script, script_hash=f"sha256-{digest}", **fields))


def breakable(name: str) -> Markup:
    """Escapes a name that may be long, such as an image's id, and lets it break at joints."""
    return Markup(re.sub(r"([/_])(?=.)", r"\1<wbr>", str(escape(name))))


def _source(name: str) -> Markup:
    """Reads a style or script of `templates` as it is."""
    environment = _environment()
    return Markup(environment.loader.get_source(environment, name)[0])


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("restore_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(breakable=breakable, change=change, number=number)
    environment.tests["defined_figure"] = defined
    environment.globals["source"] = _source
    return environment
