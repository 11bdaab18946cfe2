# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter hba_rules."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Callable

DOCUMENTATION = r"""
name: hba_rules
short_description: Lines of pg_hba.conf that admit each of several roles from each of several addresses
version_added: 0.2.0
description:
  - Returns one rule for each address and each entry of the input, as M(community.postgresql.postgresql_pg_hba) takes them in C(rules).
author: pg_ops.replication contributors (@pg-ops)
positional: addresses, contype
options:
  _input:
    description:
      - The rules without address, dictionaries with C(databases), C(users) and C(method).
      - Each has one user, whose name may hold spaces and C(#) but behind its first character.
    type: list
    elements: dict
    required: true
  addresses:
    description: The addresses or host names. An IP address gets the mask of a single host.
    type: list
    elements: str
    required: true
  contype:
    description: The kind of connection.
    type: str
    choices: [host, hostssl]
    default: host
"""

EXAMPLES = r"""
- name: Show who may stream
  ansible.builtin.debug:
    msg: "{{ [{'databases': 'replication', 'users': 'replicator', 'method': 'scram-sha-256'}] | pg_ops.replication.hba_rules(['192.0.2.11'], 'hostssl') }}"
"""

RETURN = r"""
_value:
  description: The rules.
  type: list
  elements: dict
"""


def address_of(host: str) -> str:
    """Return an address as pg_hba.conf wants it: a single IP address with its mask, a host name as it is."""
    try:
        return str(ipaddress.ip_network(host))
    except ValueError:
        return host


def user_token(name: str) -> str:
    """Return a role's name as pg_hba.conf wants it, quoted where it holds a space or a #.

    Only these are quoted, for PostgreSQL lets quotes begin in the middle of a name, and community.postgresql 4.2 takes a name
    in a list of rules apart where its first character is a quote.
    """
    return re.sub(r"[ #]+", r'"\g<0>"', name)


def hba_rules(rules: Iterable[Mapping[str, Any]], addresses: Iterable[str], contype: str = "host") -> list[dict[str, Any]]:
    """Return each rule for each address, those of one address together."""
    written = [{**rule, "users": user_token(str(rule["users"])), "contype": contype} for rule in rules]
    return [{**rule, "address": address_of(str(address))} for address in addresses for rule in written]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {"hba_rules": hba_rules}
