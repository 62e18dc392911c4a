"""Exports factors for ollama: the patched GGUF file, and a Modelfile that asks for the long context."""

import re
import shlex
from pathlib import Path

from factor_search.errors import ExportError, OutputError
from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.gguf import YARN_ROTATIONS, Gguf, form_without_lists
from factor_search.files.atomic import write_text
from factor_search.files.gguf import is_gguf, read_header
from factor_search.spec import ModelSpec

MODELFILE = "Modelfile"


class Ollama(Engine):
    """A folder with the model's GGUF file with the factors in it, and a Modelfile."""

    name = "ollama"
    title = "ollama"
    writes = "a folder with the model's GGUF file with the factors in it, and a Modelfile"
    document_name = None
    model_name = Gguf.model_name

    def check(self, source: Source) -> None:
        """As for llama.cpp, on which ollama builds; but a Modelfile has no rotations of YaRN's ramp."""
        Gguf().check(source)
        form = form_without_lists(source.file, source.short, read_header(Path(source.model.id)).architecture)
        if form is not None and form.kind == "yarn" and (form.beta_fast, form.beta_slow) != YARN_ROTATIONS:
            raise ExportError(
                f"the ramp lies between {form.beta_fast:g} and {form.beta_slow:g} rotations, which a Modelfile cannot "
                "say, and ollama would take 32 and 1: export --format gguf for llama.cpp, which takes options"
            )

    def limits(self, source: Source) -> list[Limit]:
        """As for llama.cpp."""
        return Gguf().limits(source)

    def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
        """Gives the model to ollama, under the name of the folder."""
        return _create(out.name, out / MODELFILE)

    def write(self, source: Source, out: Path) -> Exported:
        """Both files, the Modelfile last."""
        if out.is_dir() and any(out.iterdir()):
            raise OutputError(f"{out} is not empty: choose another --out")
        if is_gguf(str(out)):
            raise OutputError(f"{out} looks like a file, but ollama needs a folder: choose another --out")
        (model,) = Gguf().write(source, out).files
        modelfile = out / MODELFILE
        write_text(modelfile, f"FROM ./{model.name}\nPARAMETER num_ctx {source.file.target_length}\n")
        note = "Attention factor read, not run: that ollama applies it was read in its source code."
        return Exported([modelfile, model], _create(model.stem, modelfile), [note])


def _create(name: str, modelfile: Path) -> str:
    """The command that gives a model a name which ollama accepts."""
    name = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")
    return shlex.join(["ollama", "create", name, "-f", str(modelfile)])
