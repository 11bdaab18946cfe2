# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the options that every module which works on a server takes."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of module_utils/argspec.py."""

    DOCUMENTATION = r"""
options:
  version:
    description: Major version of PostgreSQL. Empty means the one that is configured on the host, else the platform's.
    type: str
    default: ""
  debian_cluster:
    description: Name of the PostgreSQL cluster in the sense of Debian's C(pg_lsclusters).
    type: str
    default: main
  bin_directory:
    description: Directory of PostgreSQL's programs. Empty means the platform's.
    type: str
    default: ""
  data_directory:
    description: The data directory. Empty means the one of O(debian_cluster).
    type: str
    default: ""
  config_directory:
    description: Directory of C(postgresql.conf) and C(pg_hba.conf). Empty means the platform's, which is O(data_directory) where that is set.
    type: str
    default: ""
  state_directory:
    description: Where the collection keeps its passfile, notes and reports. Empty means O(data_directory) with C(.pg_ops) appended.
    type: str
    default: ""
  log_file:
    description: The server's log with O(service_manager=pg_ctl). Empty means O(data_directory) with C(.log) appended.
    type: str
    default: ""
  owner:
    description: Operating system account of the server. The module must run as root or as this account.
    type: str
    default: postgres
  service_manager:
    description: What starts and stops the server.
    type: str
    default: systemd
    choices: [systemd, pg_ctl]
  service_name:
    description: The systemd unit. Empty means C(postgresql@VERSION-CLUSTER).
    type: str
    default: ""
  login_user:
    description: Database superuser that the module connects as, over the local socket.
    type: str
    default: postgres
  login_db:
    description: Database that the module connects to.
    type: str
    default: postgres
  login_port:
    description: The server's port.
    type: int
    default: 5432
  login_unix_socket:
    description: Directory of the server's socket. Empty means the platform's.
    type: str
    default: ""
  connect_timeout_seconds:
    description: How long a connection or an ordinary statement may take, in seconds.
    type: float
    default: 3.0
  peer_ssl_mode:
    description:
      - libpq's C(sslmode) for connections to peers. Empty leaves it to libpq, which encrypts where the peer can.
      - With V(verify-full) the peer's certificate is checked against C(tls/ca.crt) in the state directory. As long as that file is not
        there, because the certificates have not been made, connections are as with an empty text, with V(require) too.
    type: str
    choices: ["", require, verify-full]
    default: ""
    version_added: 0.2.0
requirements:
  - psycopg2 on the managed host
  - Python 3.9 or newer on the managed host
"""
