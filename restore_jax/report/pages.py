"""Renders the templates as self-contained HTML pages, and defines their tables."""

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

from restore_jax.report.forms import change, defined, number, percent, printable

Figures = Mapping[str, Any]
Formatter = Callable[[float | None], str]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of figures in a table.

    Attributes:
        group: heading that spans this column and its neighbours of the same group.
        label: the column's own heading.
        value: picks the column's figure out of the figures of a row.
        formatter: formats the figure as text.
    """

    group: str
    label: str
    value: Callable[[Figures], float | None]
    formatter: Formatter


@dataclasses.dataclass(frozen=True)
class Table:
    """A sortable table.

    Attributes:
        caption: what the table shows; also the accessible name of its scrollable region.
        first: heading of the first column, which holds the names of the rows.
        columns: the other columns.
        rows: name and figures of each row; `Column.value` receives the figures.
        pinned: rows that stay at the end however the table is sorted.
        links: for the name of a row, the id of the page section that it links to.
    """

    caption: str
    first: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Any]]
    pinned: Sequence[tuple[str, Any]] = ()
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Returns the group headings and their column spans; [] if all headings are empty."""
        grouped = itertools.groupby(column.group for column in self.columns)
        groups = [(name, len(list(same))) for name, same in grouped]
        return groups if any(name for name, _ in groups) else []


def render(template: str, **fields: object) -> str:
    """Renders a page from a template.

    Args:
        template: file name in `templates`; the template extends page.html.jinja.
        **fields: variables of the template.
    """
    script = _source("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template)
    return printable(page.render(script=script, script_hash=f"sha256-{digest}", **fields))


def breakable(name: str) -> Markup:
    """Escapes a name and allows line breaks after "/" and "_", as image ids may be long."""
    return Markup(re.sub(r"([/_])(?=.)", r"\1<wbr>", str(escape(name))))


def _source(name: str) -> Markup:
    """Reads a stylesheet or script from `templates`, unescaped."""
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
    environment.filters.update(
        breakable=breakable, change=change, number=number, percent=percent
    )
    environment.tests["defined_figure"] = defined
    environment.globals["source"] = _source
    return environment
