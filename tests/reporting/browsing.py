"""Opens pages in the machine's own Chromium through Playwright, offline, and records their faults."""

from axe_playwright_python.sync_playwright import Axe

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
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
        height = self.run("document.body.scrollHeight") + 200
        self.page.set_viewport_size(self.page.viewport_size | {"height": height})
        self.wait_until_drawn()

    def wait_until_drawn(self):
        """Wait until every chart that has a place has marks."""
        self.page.wait_for_function(_DRAWN)

    def choose(self, name, value):
        """Set a control of the explorer as a person does, by its visible text or position."""
        control = self.page.locator(f"#explore [name={name}]")
        if control.get_attribute("type") == "range":
            control.fill(str(value))
        elif isinstance(value, int):
            control.select_option(index=value)
        else:
            control.select_option(label=value)

    def rows(self, selector):
        """Texts of the visible cells of a table's body, row by row."""
        script = (
            "selector => [...document.querySelectorAll(`${selector} tbody tr`)].filter(row => row.checkVisibility())"
            ".map(row => [...row.cells].map(cell => cell.textContent.trim()))"
        )
        return self.page.evaluate(script, selector)

    def violations(self):
        """Serious and critical findings of axe, each with the first places that it names."""
        return [
            f"{found['id']}: {found['help']} at {[node['target'] for node in found['nodes'][:3]]}"
            for found in Axe().run(self.page).response["violations"]
            if found["impact"] in ("serious", "critical")
        ]


def visit(browser, path, width, *, dark=False, scripts=True):
    """Open a file in a fresh context without network."""
    looks = {"color_scheme": "dark" if dark else "light", "reduced_motion": "reduce", "is_mobile": width < 600}
    viewport = {"width": width, "height": 900}
    context = browser.new_context(offline=True, viewport=viewport, java_script_enabled=scripts, **looks)
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    return Visit(tab, path.resolve().as_uri())
