"""Who may connect to the SQL server: names and passwords of a file, checked by a class that Hive's authentication calls.

The class must be Java. It is compiled when the server starts, by Janino, the compiler that Spark itself uses for queries.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark import SparkContext

from featurize.errors import UsageError

_CLASS = "firn.ListedPasswords"
_INTERFACE = "org.apache.hive.service.auth.PasswdAuthenticationProvider"
_SOURCE = """
package firn;

import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import javax.security.sasl.AuthenticationException;

public class ListedPasswords implements org.apache.hive.service.auth.PasswdAuthenticationProvider {
    private static final String[] DIGESTS = {%s};

    public void Authenticate(String name, String password) throws AuthenticationException {
        boolean known = false;
        if (name != null && password != null) {
            byte[] digest = digest("%s" + name + "\\n" + password).getBytes(StandardCharsets.UTF_8);
            for (int i = 0; i < DIGESTS.length; i++) {
                known |= MessageDigest.isEqual(digest, DIGESTS[i].getBytes(StandardCharsets.UTF_8));
            }
        }
        if (!known) {
            throw new AuthenticationException("wrong name or password");
        }
    }

    private static String digest(String text) {
        try {
            byte[] bytes = MessageDigest.getInstance("SHA-256").digest(text.getBytes(StandardCharsets.UTF_8));
            return new java.math.BigInteger(1, bytes).toString(16);
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);
        }
    }
}
"""


def read_passwords(path: str) -> dict[str, str]:
    """The password of each name in a file with a line ``NAME:PASSWORD`` for each.

    Raises:
        UsageError: It cannot be read, others may read it, or a line is not of that form.
    """
    file = Path(path)
    try:
        mode, text = file.stat().st_mode, file.read_text("utf-8")
    except OSError as error:
        raise UsageError(
            f"`password_file` (--password-file) {path} cannot be read: {error.strerror or error}."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"`password_file` (--password-file) {path} must be text in UTF-8.") from error
    if mode & 0o077:
        raise UsageError(
            f"`password_file` (--password-file) {path} may be read or written by others: run chmod 600 first."
        )
    passwords: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, colon, password = line.partition(":")
        if not line.strip():
            continue
        if not colon or not name or not password or name in passwords:
            raise UsageError(
                f"`password_file` (--password-file) {path}, line {number}: must be NAME:PASSWORD, each name once."
            )
        passwords[name] = password
    if not passwords:
        raise UsageError(f"`password_file` (--password-file) {path} names nobody: it must have a line NAME:PASSWORD.")
    return passwords


def require_passwords(context: SparkContext, passwords: Mapping[str, str]) -> None:
    """Lets the server that is started next in the Java of `context` accept only these names with these passwords."""
    salt = secrets.token_hex(16)
    texts = (f"{salt}{name}\n{password}" for name, password in passwords.items())
    digests = (f"{int(hashlib.sha256(text.encode()).hexdigest(), 16):x}" for text in texts)
    gateway: Any = context._gateway
    java = gateway.jvm.java.lang
    loader = java.Class.forName(_INTERFACE).getClassLoader()
    compiler = gateway.jvm.org.codehaus.janino.SimpleCompiler()
    compiler.setParentClassLoader(loader)
    compiler.cook(_SOURCE % (", ".join(f'"{digest}"' for digest in digests), salt))
    content = compiler.getBytecodes()[_CLASS]
    # Hive looks for the class in whatever loader its thread has: each session has one of its own, and all have Hive's above.
    # So the class goes there, by the method that is meant for loaders themselves.
    text, octets = java.Class.forName("java.lang.String"), java.Class.forName("[B")
    types = _array(gateway, java.Class, [text, octets, java.Integer.TYPE, java.Integer.TYPE])
    define = java.Class.forName("java.lang.ClassLoader").getDeclaredMethod("defineClass", types)
    define.setAccessible(True)
    define.invoke(loader, _array(gateway, java.Object, [_CLASS, content, 0, len(content)]))
    # Hive looks at these in the system's properties alone where it checks a password.
    java.System.setProperty("hive.server2.authentication", "CUSTOM")
    java.System.setProperty("hive.server2.custom.authentication.class", _CLASS)


def _array(gateway: Any, kind: Any, values: Sequence[Any]) -> Any:
    """A Java array."""
    made = gateway.new_array(kind, len(values))
    for index, value in enumerate(values):
        made[index] = value
    return made
