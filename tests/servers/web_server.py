"""A web server for a directory: nginx. Run as a program, with the directory, and a new one for nginx's own files.

It takes a free port of the loopback interface, prints it when nginx listens, and ends with nginx. The same files are
below ``/no-ranges/``, where requests for byte ranges get everything, and below ``/no-etags/``; ``/redirect/``
redirects to what the query says.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_CONFIGURATION = """
daemon off;
master_process off;
pid {place}/nginx.pid;
error_log {place}/errors;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {place}/bodies;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        location /no-ranges/ {{ alias {root}/; max_ranges 0; }}
        location /no-etags/ {{ alias {root}/; etag off; }}
        location /redirect/ {{ return 302 $args; }}
    }}
}}
"""


def main() -> None:
    root, place = sys.argv[1:]
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    configuration = Path(place, "nginx.conf")
    configuration.write_text(_CONFIGURATION.format(root=root, place=place, port=address[1]))
    nginx = subprocess.Popen(["nginx", "-p", place, "-c", str(configuration)])
    signal.signal(signal.SIGTERM, lambda *_: nginx.terminate())
    while nginx.poll() is None:
        try:
            socket.create_connection(address).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            print(address[1], flush=True)
            break
    sys.exit(nginx.wait())


if __name__ == "__main__":
    main()
