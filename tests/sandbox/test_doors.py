"""One server behind several ports, each of which can be closed."""

from __future__ import annotations

import socket

import httpx
import pytest

from tests.sandbox.client import Client


def open_door(client: Client, port: int = 0) -> httpx.Response:
    return client.http.post(f"{client.server.url}/sandbox/doors", json={"port": port})


def test_every_door_leads_to_the_same_grants(client: Client) -> None:
    door = open_door(client).json()["url"]
    token = client.sign_in()
    form = {
        "grant_type": "refresh_token",
        "refresh_token": token.reveal(),
        "client_id": client.server.config.client_id,
        "client_secret": client.server.config.client_secret.reveal(),
    }
    assert client.http.post(f"{door}/token", data=form).status_code == 200
    assert client.server.ledger().refreshes == 1


def test_a_closed_door_refuses_connections_until_it_is_opened_again(client: Client) -> None:
    door = open_door(client).json()
    doors = f"{client.server.url}/sandbox/doors"
    assert client.http.delete(f"{doors}/{door['port']}").json() == {"closed": True}
    with httpx.Client() as stranger, pytest.raises(httpx.ConnectError):
        stranger.get(f"{door['url']}/sandbox/held")
    assert client.http.delete(f"{doors}/{door['port']}").json() == {"closed": False}
    assert open_door(client, door["port"]).json() == door
    assert client.http.get(f"{door['url']}/sandbox/held").status_code == 200


def test_a_door_that_is_open_stays_open(client: Client) -> None:
    door = open_door(client).json()
    assert open_door(client, door["port"]).json() == door


def test_a_port_that_cannot_be_had_is_explained(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = open_door(client, taken.getsockname()[1])
    assert answer.status_code == 400
    assert "choose another port" in answer.json()["error"]
