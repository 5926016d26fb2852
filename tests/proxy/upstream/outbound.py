"""What stands between the gateway and a backend: an outbound proxy, and a server that speaks HTTP/2."""

import asyncio

import h2.config
import h2.connection
import h2.events


class OutboundProxy:
    """Tunnels CONNECT and passes plain requests on, to `port` whatever name is asked for. Notes the heads it got."""

    def __init__(self, port=0, refuses=b"", hangs=False, tls=None):
        self.port_behind = port
        self.refuses = refuses  # the status line it answers with
        self.hangs = hangs
        self.tls = tls
        self.heads = []
        self.writers = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc):
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def serve(self, reader, writer):
        self.writers.append(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.hangs:
                await reader.read()
                return
            if self.refuses:
                writer.write(self.refuses + b"\r\ncontent-length: 0\r\n\r\n")
                return
            behind, onwards = await asyncio.open_connection("127.0.0.1", self.port_behind)
            self.writers.append(onwards)
            if head.startswith(b"CONNECT"):
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                onwards.write(head)
            await asyncio.gather(_pump(reader, onwards), _pump(behind, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


async def _pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class Http2Server(asyncio.Protocol):
    """One connection: answers each stream with its path, in two pieces; /hang stops after the first."""

    connections = 0
    gone = 0

    def connection_made(self, transport):
        type(self).connections += 1
        self.transport = transport
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.h2.initiate_connection()
        self.paths = {}
        self.flush()

    def connection_lost(self, exc):
        type(self).gone += 1

    def data_received(self, data):
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.paths[event.stream_id] = dict(event.headers)[b":path"]
            elif isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.answer(event.stream_id)
        self.flush()

    def answer(self, stream):
        path = self.paths[stream]
        self.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/x-ndjson")])
        self.h2.send_data(stream, b"{}\n")
        if path == b"/hang":
            return
        self.h2.send_data(stream, path, end_stream=True)

    def flush(self):
        self.transport.write(self.h2.data_to_send())
