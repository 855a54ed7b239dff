"""Opens pages in the machine's own Chromium through Playwright, offline, and records their faults."""

from axe_playwright_python.sync_playwright import Axe

_MARKS = "svg .mark-line path, svg .mark-rect path, svg .mark-symbol path, svg .mark-rule line"
_DRAWN = (
    "() => [...document.querySelectorAll('.chart')].filter(chart => chart.clientWidth)"
    f".every(chart => chart.querySelector('canvas, {_MARKS}'))"
)


class Visit:
    """A tab with one file open, with its complaints.

    Attributes:
        page: Playwright's page.
        complaints: Errors and warnings of the console, exceptions, requests other than for the file itself.
    """

    def __init__(self, page, address):
        self.page, self.complaints = page, []
        note = self.complaints.append
        page.on("console", lambda message: message.type in ("error", "warning", "assert") and note(message.text))
        page.on("pageerror", lambda error: note(f"exception: {error}"))
        page.on("request", lambda request: request.url == address or note(f"request: {request.url}"))
        page.goto(address)

    def run(self, expression):
        """Value of a JavaScript expression; a promise is awaited."""
        return self.page.evaluate(expression)

    def draw_everything(self):
        """Open all details, make the window as tall as the page, so that every chart is near, and wait for them."""
        self.run("document.querySelectorAll('details').forEach(details => details.open = true)")
        size = self.page.viewport_size | {"height": self.run("document.body.scrollHeight") + 200}
        self.page.set_viewport_size(size)
        self.wait_until_drawn()

    def wait_until_drawn(self):
        """Wait until every chart that has a place has marks."""
        self.page.wait_for_function(_DRAWN)

    def choose(self, name, value):
        """Set a control of the explorer as a person does, by its visible text or position."""
        control = self.page.locator(f"#explore [name={name}]")
        if isinstance(value, int):  # a slider
            control.fill(str(value))
        else:
            control.select_option(label=value)

    def rows(self):
        """Texts of the visible cells of the explorer's table, row by row."""
        visible = "[...document.querySelectorAll('#explore tbody tr')].filter(row => row.checkVisibility())"
        return self.run(f"{visible}.map(row => [...row.cells].map(cell => cell.textContent.trim()))")

    def violations(self):
        """Serious and critical findings of axe, each with the first places that it names."""
        return [
            f"{found['id']}: {found['help']} at {[node['target'] for node in found['nodes'][:3]]}"
            for found in Axe().run(self.page).response["violations"]
            if found["impact"] in ("serious", "critical")
        ]
