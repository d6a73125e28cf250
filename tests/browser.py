"""A real JupyterLab or Voila on loopback, a real Chromium in front of it, and a line to the kernel behind it."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-gpu-compositing",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 120  # seconds a page may take on a busy machine; nothing here is timed
SHOTS = Path(os.environ.get("SSL_NB_SHOTS", Path(__file__).parent / ".screenshots"))


def write_notebook(path: Path, *cells: str) -> Path:
    "A notebook of code cells; a cell that begins with '#' and a space is Markdown."
    make = {True: nbformat.v4.new_markdown_cell, False: nbformat.v4.new_code_cell}
    nb = nbformat.v4.new_notebook(cells=[make[cell.startswith("# ")](cell) for cell in cells])
    nb.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nb, path)
    return path


class Server:
    "Commands are lists of words in which {port} and {token} stand for what is free and secret."

    def __init__(self, command: list[str], folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.token = folder, secrets.token_hex(8)
        environment = os.environ | {
            "OMP_WAIT_POLICY": "PASSIVE",
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "TMPDIR": str(folder),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        words = [word.format(port=self.port, token=self.token) for word in command]
        self.log = open(folder / "server.log", "a+")
        self.process = subprocess.Popen(words, cwd=folder, env=environment, stdout=self.log, stderr=self.log)
        self._await()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def kernel(self) -> "Kernel":
        "The kernel that was started last."
        return Kernel(max(self.folder.rglob("kernel-*.json"), key=lambda file: file.stat().st_mtime))

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def _await(self):
        until = time.monotonic() + WAIT
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.url("/api"), timeout=5)
                return
            except urllib.error.HTTPError:  # it answers, if only to refuse
                return
            except OSError:
                time.sleep(0.2)
        self.log.seek(0)
        raise RuntimeError(f"the server did not answer:\n{self.log.read()[-3000:]}")


class Kernel:
    "Asks a running kernel for the value of an expression."

    def __init__(self, connection: Path):
        from jupyter_client import BlockingKernelClient

        self.client = BlockingKernelClient()
        self.client.load_connection_file(str(connection))
        self.client.start_channels()

    def ask(self, expression: str):
        "The value, through JSON."
        asked = {"v": f"__import__('json').dumps({expression})"}
        reply = self.client.execute("", user_expressions=asked, store_history=False, reply=True, timeout=WAIT)
        value = reply["content"]["user_expressions"]["v"]
        if value["status"] != "ok":
            raise AssertionError(f"{expression}: {value['ename']}: {value['evalue']}")
        return json.loads(eval(value["data"]["text/plain"]))

    def wait(self, expression: str):
        "Wait until an expression is true in the kernel; returns its value."
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            if value := self.ask(expression):
                return value
            time.sleep(0.1)
        raise AssertionError(f"never true in the kernel: {expression}")


def jupyterlab(folder: Path) -> Server:
    quiet = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false"}')  # or a dialog asks, over the widgets
    words = (
        "jupyter lab --no-browser --allow-root --ServerApp.ip=127.0.0.1 --ServerApp.port={port} --IdentityProvider.token={token} "
        "--LabApp.expose_app_in_browser=True --LabApp.news_url= --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
    )
    return Server([sys.executable, "-m", *words.split()], folder)


@contextmanager
def voila(notebook: Path | str, folder: Path):
    "`ssl_nb serve` on one notebook, a file or the name of a lesson."
    server = Server([str(Path(sys.executable).parent / "ssl_nb"), "serve", str(notebook), "--port", "{port}"], folder)
    try:
        yield server
    finally:
        server.stop()


def open_and_run(page, server: Server, notebook: Path, wait: int = WAIT) -> Kernel:
    "Open a notebook of the server's folder in JupyterLab, run all its cells, and wait until they have."
    page.goto(server.url(f"/lab/tree/{notebook.relative_to(server.folder)}?reset&token={server.token}"))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=WAIT * 1000)
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=WAIT * 1000
    )
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    kernel = server.kernel()
    page.wait_for_function(
        "[...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].every(p => /\\[\\d+\\]/.test(p.textContent))",
        timeout=wait * 1000,
    )
    return kernel


def drawn(page, index: int = 0):
    "The canvas of a widget, when it has drawn."
    canvas = page.locator(".ssl-nb-canvas").nth(index)
    canvas.wait_for(timeout=WAIT * 1000)
    canvas.scroll_into_view_if_needed()
    page.wait_for_function("c => c.dataset.frame > 0", arg=canvas.element_handle(), timeout=WAIT * 1000)
    return canvas


def changes(page, canvas, act):
    "Do something, and wait until the canvas says something else. Returns its text."
    before = canvas.get_attribute("aria-label")
    act()
    page.wait_for_function(
        "([c, before]) => c.getAttribute('aria-label') !== before", arg=[canvas.element_handle(), before], timeout=WAIT * 1000
    )
    return canvas.get_attribute("aria-label")


def click_panel(canvas, panel: int, across: float, down: float):
    "Click into a panel, at parts of its width and height."
    x, y, w, h = json.loads(canvas.get_attribute("data-places"))[panel]
    canvas.click(position={"x": x + across * w, "y": y + down * h})


def slide(page, label: str, keys: str = "ArrowRight", times: int = 1, index: int = 0):
    "Move the slider of that label by keys."
    handle = page.locator(".widget-slider", has_text=label).nth(index).locator(".noUi-handle")
    handle.focus()
    for _ in range(times):
        handle.press(keys)


def shoot(page, name: str, whole: bool = False) -> Path:
    "Keep a screenshot, of the window or of the whole page, as an artifact to be looked at."
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=whole)
    return SHOTS / f"{name}.png"
