"""Exports factors for ollama: the patched GGUF file, and a Modelfile that asks for the long context."""

import re
import shlex
from pathlib import Path

from factor_search.errors import OutputError
from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.gguf import Gguf
from factor_search.files.atomic import write_text
from factor_search.files.gguf import is_gguf

MODELFILE = "Modelfile"


class Ollama(Engine):
    """A folder with the model's GGUF file with the factors in it, and a Modelfile."""

    name = "ollama"
    title = "ollama"
    writes = "a folder with the model's GGUF file with the factors in it, and a Modelfile"
    document_name = None

    def check(self, source: Source) -> None:
        """As for llama.cpp, on which ollama builds."""
        Gguf().check(source)

    def limits(self, source: Source) -> list[Limit]:
        """As for llama.cpp."""
        return Gguf().limits(source)

    def write(self, source: Source, out: Path) -> Exported:
        """Both files, the Modelfile last."""
        if out.is_dir() and any(out.iterdir()):
            raise OutputError(f"{out} is not empty: choose another --out")
        if is_gguf(str(out)):
            raise OutputError(f"{out} looks like a file, but ollama needs a folder: choose another --out")
        (model,) = Gguf().write(source, out).files
        modelfile = out / MODELFILE
        write_text(modelfile, f"FROM ./{model.name}\nPARAMETER num_ctx {source.file.target_length}\n")
        name = re.sub(r"[^a-z0-9._-]+", "-", model.stem.lower()).strip("-.")
        note = "Attention factor read, not run: that ollama applies it was read in its source code."
        return Exported([modelfile, model], f"ollama create {name} -f {shlex.quote(str(modelfile))}", [note])
