# Sourced by the two one-command scripts: a virtual environment with the project in it. $1: extras, e.g. "[test]".
unset PYTHONDONTWRITEBYTECODE # modules are compiled once, when they are first imported
venv=${GCP_JAX_VENV:-.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
echo "installing gcp-jax$1 into $venv …" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".$1"
