"""Asks one of Google's APIs, with what the library finds by itself (application default credentials)."""
import sys

import google.auth
from google.auth.transport.requests import AuthorizedSession

credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"], quota_project_id="p")
answer = AuthorizedSession(credentials).get(sys.argv[1])
answer.raise_for_status()
print(answer.text)
