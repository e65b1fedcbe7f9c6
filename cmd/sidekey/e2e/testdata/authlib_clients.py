"""Authlib, unmodified: a client's grants, and a service that verifies by metadata. Input on standard input, findings on
standard output, both JSON; from clients_test.go."""
import json
import os
import sys

os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # the suite's issuer is on loopback, without TLS

import requests
from authlib.integrations.requests_client import OAuth2Session
from authlib.jose import JsonWebKey, JsonWebToken
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata, get_well_known_url

given = json.load(sys.stdin)
found = {"tokens": []}

metadata = {}
for external in (get_well_known_url(given["issuer"], external=True), given["issuer"] + "/.well-known/openid-configuration"):
    metadata = AuthorizationServerMetadata(requests.get(external, timeout=10).json())
    for name in ("jwks_uri", "response_types_supported", "grant_types_supported", "token_endpoint_auth_methods_supported",
                 "revocation_endpoint_auth_methods_supported", "introspection_endpoint_auth_methods_supported",
                 "token_endpoint_auth_signing_alg_values_supported"):
        if name != "jwks_uri":  # which must be https, as on every issuer but this one
            getattr(metadata, "validate_" + name)()
token_endpoint = metadata["token_endpoint"]
keys = JsonWebKey.import_key_set(requests.get(metadata["jwks_uri"], timeout=10).json())


def verified(token):
    claims = JsonWebToken(["RS256"]).decode(token, keys, claims_options={
        "iss": {"essential": True, "value": given["issuer"]}, "aud": {"essential": True, "value": given["issuer"]},
    })
    claims.validate()
    return claims


for who, secret, method in (("authlib", given["secret"], "client_secret_basic"), ("authlib", given["secret"], "client_secret_post"),
                            ("robot", given["pem"], "private_key_jwt")):
    session = OAuth2Session(who, secret, scope="read", token_endpoint_auth_method=method)
    if method == "private_key_jwt":
        session.register_client_auth_method(PrivateKeyJWT(token_endpoint))
        session.token_endpoint_auth_method = session.revocation_endpoint_auth_method = PrivateKeyJWT.name
    token = session.fetch_token(token_endpoint, grant_type="client_credentials")
    claims = verified(token["access_token"])

    def active():
        return session.introspect_token(metadata["introspection_endpoint"], token["access_token"], "access_token").json()["active"]

    before = active()
    session.revoke_token(metadata["revocation_endpoint"], token["access_token"], "access_token").raise_for_status()
    found["tokens"].append({"sub": claims["sub"], "scope": claims["scope"], "expires": token["expires_in"], "before": before, "after": active()})

public = OAuth2Session("sidekey", token_endpoint_auth_method="none")
again = public.refresh_token(token_endpoint, refresh_token=given["refresh"])
found["refreshed"] = again["refresh_token"] != given["refresh"] and "user_id" in verified(again["access_token"])
try:
    OAuth2Session("authlib", "wrong").fetch_token(token_endpoint, grant_type="client_credentials")
except Exception as err:
    found["refused"] = {"error": getattr(err, "error", str(err))}
json.dump(found, sys.stdout)
