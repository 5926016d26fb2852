"""The secrets of authenticator apps and recovery codes, encrypted at rest like the credentials of backends."""

from allauth.mfa.adapter import DefaultMFAAdapter

from proxy.credentials import seal, unseal


class SealingMFAAdapter(DefaultMFAAdapter):
    def encrypt(self, text: str) -> str:
        return seal(text).decode("ascii")

    def decrypt(self, encrypted_text: str) -> str:
        return unseal(encrypted_text.encode("ascii"))
