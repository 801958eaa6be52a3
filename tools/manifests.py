"""The kustomize base, made from the chart with its default values: `python -m tools.manifests` writes it anew.

Hooks are Helm's own, and so is one of the labels; the rest is the same, comments too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import helm_python

PROJECT = Path(__file__).parents[1]
CHART = PROJECT / "deploy/helm/kata"
BASE = PROJECT / "deploy/kustomize"
RELEASE, NAMESPACE = "kata", "kata-system"

_HEADER = "# Made from deploy/helm/kata by `python -m tools.manifests`: change it there.\n"
_HELMS = "app.kubernetes.io/managed-by: Helm"
_NAMESPACE = f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    # The installer mounts the nodes' root file systems.
    pod-security.kubernetes.io/enforce: privileged
"""


def render(values: dict[str, object] | None = None) -> dict[str, str]:
    """What `helm template` prints with some values, hooks included: text by the template's path in the chart.

    Raises:
        helm_python.HelmError: the values are refused.
    """
    with helm_python.Chart.load(CHART) as chart:
        made = chart.render(values or {}, name=RELEASE, namespace=NAMESPACE, is_install=True)
    return {name.partition("templates/")[2]: text for name, text in made.items()}


def base() -> dict[str, str]:
    """The files of the kustomize base, by name."""
    files = {"namespace.yaml": _NAMESPACE}
    for name, text in render().items():
        if name.endswith(".yaml") and "helm.sh/hook" not in text and text.strip():
            lines = [line for line in text.strip("-\n").splitlines() if line.strip() and line.strip() != _HELMS]
            files[name] = "\n".join(lines) + "\n"
    resources = "".join(f"  - {name}\n" for name in sorted(files))
    files["kustomization.yaml"] = (
        f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{resources}"
    )
    return {name: _HEADER + text for name, text in files.items()}


def main() -> int:
    """Write all files; returns the exit status."""
    for path in BASE.glob("*.yaml"):
        path.unlink()
    for name, text in base().items():
        (BASE / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
