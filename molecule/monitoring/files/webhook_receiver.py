# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes Alertmanager's messages: one line an alert, and the whole message.

    webhook_receiver.py PORT PATH LOG
"""

from __future__ import annotations

import http.server
import json
import sys

PORT, PATH, LOG = int(sys.argv[1]), sys.argv[2], sys.argv[3]


class Receiver(http.server.BaseHTTPRequestHandler):
    """Answers what Alertmanager sends to PATH; anything else is refused, so that a wrong URL shows."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != PATH:
            self.send_error(404)
            return
        message = json.loads(body)
        with open(LOG, "a", encoding="utf-8") as log:
            for alert in message["alerts"]:
                labels = alert["labels"]
                words = (alert["status"], labels["severity"], labels["alertname"], labels["cluster"], alert["annotations"]["summary"])
                log.write(" | ".join(words) + "\n")
        with open(LOG + ".json", "a", encoding="utf-8") as log:
            log.write(json.dumps(message) + "\n")
        self.send_response(200)
        self.end_headers()


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Receiver).serve_forever()
