"""Leaves Claude Code's own file as a person does who has answered the questions of its first run."""
import json, os

path = os.path.join(os.environ.get("CLAUDE_CONFIG_DIR") or os.environ["HOME"], ".claude.json")
try:
    with open(path) as f:
        state = json.load(f)
except FileNotFoundError:
    state = {}
state.update(hasCompletedOnboarding=True, theme="dark", remoteDialogSeen=True)
state.setdefault("projects", {}).setdefault(os.getcwd(), {})["hasTrustDialogAccepted"] = True
with open(path, "w") as f:
    json.dump(state, f)
