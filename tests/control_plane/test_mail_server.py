"""EMAIL_URL, as people write it."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from gateway_site.environment import MailServer, mail_server


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail", MailServer("mail", 25, "", "", starttls=False, tls=False)),
        ("smtp://mail:2525", MailServer("mail", 2525, "", "", starttls=False, tls=False)),
        ("smtp+tls://u%40x:p%2F@mail", MailServer("mail", 587, "u@x", "p/", starttls=True, tls=False)),
        ("smtps://u:p@mail", MailServer("mail", 465, "u", "p", starttls=False, tls=True)),
    ],
)
def test_a_mail_server_is_one_address(monkeypatch, url, expected):
    monkeypatch.setenv("EMAIL_URL", url)
    assert mail_server("EMAIL_URL") == expected


@pytest.mark.parametrize("url", ["mail.example:25", "http://mail", "smtp://", "smtp://u:secret@mail:port"])
def test_what_is_none_is_refused_without_showing_its_password(monkeypatch, url):
    monkeypatch.setenv("EMAIL_URL", url)
    with pytest.raises(ImproperlyConfigured) as refused:
        mail_server("EMAIL_URL")
    assert "secret" not in str(refused.value)


def test_a_password_is_not_in_what_is_logged_of_it():
    assert "hidden" not in repr(MailServer("mail", 25, "u", "hidden", starttls=False, tls=False))
