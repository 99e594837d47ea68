# Makes a virtual environment with the project in it and sets $venv. Sourced by the scripts that
# users run. $1: extras, e.g. "[test]". GCP_JAX_VENV chooses another folder than .venv.
unset PYTHONDONTWRITEBYTECODE # modules are compiled once, when they are first imported
venv=${GCP_JAX_VENV:-.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
echo "installing gcp-jax$1 into $venv …" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".$1"
