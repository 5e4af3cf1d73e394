"""Clients of OpenAI-compatible servers: many requests to one or several URLs, some of which may fail, be slow, or go."""

from prefdata.servers.call import Refused
from prefdata.servers.client import Reply, Servers
from prefdata.servers.health import Patience, ServersGone

__all__ = ["Patience", "Refused", "Reply", "Servers", "ServersGone"]
