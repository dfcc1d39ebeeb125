"""The gateway's configuration: read, substituted, checked, compared.

Pure: all inputs are passed in (`environ`, `home`), and only `load_config` opens a file. `parse_config` returns frozen
Structs or raises one ConfigError with every problem of the file, one readable line each; harmless oddities are in
`Config.warnings`. No line ever shows a secret.

To add a field, add its annotated line to a Struct: its type gives bounds and wording, `doc` meaning and aliases. A
field that is not a scalar has its Struct and its reader in a separate module, linked by `read_by` (see `limits`). The
readers, `mcp-gateway fields`, the documentation and the JSON Schema follow.
"""

from gateway.config.audit import AuditSettings
from gateway.config.difference import ConfigDiff, changed_at_start_only, diff_configs
from gateway.config.lifecycle import NEVER_RESTART, RestartPolicy, ShutdownGrace
from gateway.config.limits import CircuitBreaker, CrashLimit, RateLimit
from gateway.config.model import Config, GatewaySettings, ServerConfig
from gateway.config.oauth import OAuthSettings
from gateway.config.parse import load_config, parse_config
from gateway.config.reference import FieldReference, config_reference
from gateway.config.servers import parse_server

__all__ = [
    "NEVER_RESTART",
    "AuditSettings",
    "CircuitBreaker",
    "Config",
    "ConfigDiff",
    "CrashLimit",
    "FieldReference",
    "GatewaySettings",
    "OAuthSettings",
    "RateLimit",
    "RestartPolicy",
    "ServerConfig",
    "ShutdownGrace",
    "changed_at_start_only",
    "config_reference",
    "diff_configs",
    "load_config",
    "parse_config",
    "parse_server",
]
