"""An OpenID Connect provider: a real server that says of everybody what the test tells it."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

CLIENT_ID = "gateway"


class Issuer:
    def __init__(self):
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.claims = {"sub": "1", "email": "nina@example.com", "email_verified": True, "preferred_username": "nina"}
        self.token_requests = []
        self.audience = CLIENT_ID

    def __enter__(self):
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path.endswith("/.well-known/openid-configuration"):
                    self.say(issuer.configuration())
                elif self.path == "/jwks":
                    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(issuer.key.public_key()))
                    self.say({"keys": [{**public, "kid": "1", "alg": "RS256"}]})
                else:
                    self.say(issuer.claims)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                issuer.token_requests.append(body)
                self.say({"access_token": "access", "token_type": "Bearer", "id_token": issuer.id_token()})

            def say(self, what):
                body = json.dumps(what).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()

    def configuration(self):
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "userinfo_endpoint": f"{self.url}/userinfo",
            "jwks_uri": f"{self.url}/jwks",
            "token_endpoint_auth_methods_supported": ["client_secret_post"],
        }

    def id_token(self):
        now = int(time.time())
        claims = {"iss": self.url, "aud": self.audience, "iat": now, "exp": now + 300, **self.claims}
        return jwt.encode(claims, self.key, "RS256", headers={"kid": "1"})
