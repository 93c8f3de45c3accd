"""GET /: the playground, a static page that loads nothing from other servers (API.md §5)."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

FOLDER = Path(__file__).parents[1] / "playground"
PAGE = "index.html"
FILES = {"/": PAGE} | {f"/playground/{file.name}": file.name for file in sorted(FOLDER.iterdir()) if file.name != PAGE}
"""The file of each path."""
HEADERS = {
    # Only the page's own files and its own server: no inline code, no frame around it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # The files must be of one version: browsers ask for each again.
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


def _serve(path: str, name: str) -> None:
    @router.get(path)
    async def file() -> FileResponse:
        return FileResponse(FOLDER / name, headers=HEADERS)


for _path, _name in FILES.items():
    _serve(_path, _name)
