"""What MkDocs is told of this repository: its pages are written for GitHub, where they lead to files beside docs/ too.

README.md is the first page, CONTRIBUTING.md is one, and every other file or directory that a page leads to becomes one with its text.
"""

import posixpath
import re
import subprocess
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)|(?<=src=\")([^\"#]+)|(?<=srcset=\")([^\"#]+)")


def in_site(path):
    """Where the site has a file of the repository."""
    if path in MOVED:
        return MOVED[path]
    return path[len("docs/"):] if path.startswith("docs/") else f"source/{path.lstrip('.')}.md"


def in_repository(uri):
    """The file of the repository that is a page of the site."""
    return {page: path for path, page in MOVED.items()}.get(uri, "docs/" + uri)


def target(path, link):
    """The file of the repository that a link in another one leads to, or None."""
    to = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return to if ":" not in link and not to.startswith("..") and (ROOT / to).exists() else None


def on_files(files, config):
    for path, page in {"console/static/icon.svg": "icon.svg", "deploy/tools/site.css": "site.css", **MOVED}.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for page in list(files.documentation_pages()):
        path = in_repository(page.src_uri)
        for link in LINK.finditer(page.content_string):
            to = target(path, link[0])
            if to and not to.startswith("docs/") and in_site(to) not in files.src_uris:
                files.append(File.generated(config, in_site(to), content=source(to)))
    add_rest(config["nav"], files)
    return files


def source(path):
    """A page with the text of a file, or of all files below a directory; of many, with their names."""
    names = subprocess.run(["git", "ls-files", "--", path], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    page = f"---\nsearch: {{exclude: true}}\n---\n# `{path}`\n\n"
    if len(names) > 50:
        return page + "".join(f"- `{name}`\n" for name in names)
    for name in names:
        heading = f"\n## `{name}`\n" if name != path else ""
        page += f"{heading}\n~~~~~~ {{.{Path(name).suffix[1:] or 'text'}}}\n{(ROOT / name).read_text()}\n~~~~~~\n"
    return page


def add_rest(nav, files):
    """Puts the pages that the configuration does not name at the end."""
    named = set(re.findall(r"'([^']+\.md)'", repr(nav)))
    rest = sorted(f.src_uri for f in files.documentation_pages() if f.src_uri not in named and not f.src_uri.startswith("source/"))
    sections = {}
    for uri in rest:
        sections.setdefault((posixpath.dirname(uri) or "more").capitalize(), []).append(uri)
    nav.extend({name: pages} for name, pages in sections.items())


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown

    def moved(link):
        to = target(in_repository(uri), link[0])
        return posixpath.relpath(in_site(to), posixpath.dirname(uri)) if to else link[0]

    return LINK.sub(moved, markdown)
