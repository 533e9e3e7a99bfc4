"""Run folders on the Hugging Face hub. This needs the extra `hub`: `pip install 'maml_rl[hub]'`."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

try:
    from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
except ImportError as error:
    raise ImportError("huggingface_hub is not installed; install it with `pip install 'maml_rl[hub]'`") from error

from .errors import UserError
from .meta_policy import MetaPolicy, load
from .methods import curve_name
from .results.comparison import as_markdown, label
from .runs.folder import load_config
from .zoo import located

_NEEDED, _SHOWN = ("config.json", "checkpoint.pt"), ("evaluation.json", "card.json", "adaptation.png")
_CARD = """---
{{ card_data }}
---

# {{ title }}

A meta-trained policy of maml_rl: {{ method }} on the task family `{{ env_id }}`,
{{ iterations }}, seed {{ seed }}.

```python
from maml_rl.hub import HubRun

policy = HubRun.from_pretrained("USER/NAME").load()
adapted = policy.adapt(env)
```

{{ table }}
"""


class HubRun(
    ModelHubMixin,
    library_name="maml_rl",
    tags=["reinforcement-learning", "meta-learning"],
    model_card_template=_CARD,
):
    """A run folder that can be published: `HubRun("runs/boat").push_to_hub("user/boat")`.

    `HubRun.from_pretrained("user/boat").load()` gives the policy back. Loading never runs code from the hub. The
    hub gets config.json, checkpoint.pt, the evaluation and its picture, and a README.md with a table of returns.

    Args:
        run_dir: The run folder, or `zoo/NAME`.

    Raises:
        UserError: If the folder holds no run.
    """

    def __init__(self, run_dir: str | os.PathLike[str]):
        self.folder = located(Path(run_dir)).absolute()
        self._config = load_config(self.folder)

    def load(self, policy: nn.Module | None = None, trust: bool = False) -> MetaPolicy:
        """Loads the policy, like `maml_rl.load`."""
        return load(self.folder, policy, trust)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Writes README.md from the run's options and evaluation."""
        config, rows = self._config, [["steps", "return", "95% interval"]]
        path = self.folder / "evaluation.json"
        if path.exists():
            curve = json.loads(path.read_text())["methods"][curve_name(config)]
            rows += [
                [str(k), f"{mean:.2f}", f"{low:.2f} to {high:.2f}"]
                for k, (mean, (low, high)) in enumerate(zip(curve["mean"], curve["ci95"], strict=True))
            ]
        about = {"title": config.env_id, "method": label(config), "env_id": config.env_id}
        goes_on = f" that go on from `{config.start_from}`" if config.start_from else ""
        about |= {"iterations": f"{config.iterations} meta-iterations{goes_on}", "seed": str(config.seed)}
        table = as_markdown(rows) if len(rows) > 1 else ""
        return super().generate_model_card(*args, **about, table=table, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> str | None:
        """Copies what the hub gets into a folder. A README.md that is there stays.

        Raises:
            UserError: If it is the run's own folder, whose files the base class would remove first.
        """
        target = Path(save_directory)
        if target.resolve() == self.folder.resolve():
            raise UserError(f"{target} is the folder of the run itself; choose another one.")
        saved: str | None = super().save_pretrained(target, **kwargs)
        return saved

    def _save_pretrained(self, save_directory: Path) -> None:
        for name in (*_NEEDED, *_SHOWN):
            if name in _NEEDED or (self.folder / name).exists():
                shutil.copy(self.folder / name, save_directory / name)
            else:  # it may be that of another run
                (save_directory / name).unlink(missing_ok=True)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **kwargs: Any,
    ) -> "HubRun":
        if Path(model_id).is_dir():
            return cls(model_id)
        folder = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=[*_NEEDED, *_SHOWN],
        )
        return cls(folder)
