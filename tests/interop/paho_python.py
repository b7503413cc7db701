"""paho-mqtt (PyPI) against a broker: HOST PORT VERSION CASE PREFIX; see main.rs."""

import queue
import socket
import sys
import threading
import time

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

HOST, PORT, VERSION, CASE, PREFIX = sys.argv[1:6]
PROTOCOL = {"v31": paho.MQTTv31, "v311": paho.MQTTv311, "v5": paho.MQTTv5}[VERSION]
V5 = VERSION == "v5"
DEADLINE = 30


def properties(packet, **values):
    result = Properties(packet)
    for name, value in values.items():
        setattr(result, name, value)
    return result


class Client:
    """A connected client whose events are waited for, each with a deadline."""

    def __init__(self, name="", clean=True, expiry=0, will=None, connect=None, expect=0):
        self.messages = queue.Queue()
        self.connected = queue.Queue()
        self.subscribed = queue.Queue()
        self.unsubscribed = queue.Queue()
        self.published = queue.Queue()
        self.disconnected = queue.Queue()
        arguments = {} if V5 else {"clean_session": clean}
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=PREFIX + name if name is not None else "",
            protocol=PROTOCOL,
            reconnect_on_failure=False,
            **arguments,
        )
        self.client.max_inflight_messages_set(50)
        self.client.on_message = lambda c, u, message: self.messages.put(message)
        self.client.on_connect = lambda c, u, flags, reason, props: self.connected.put(
            (flags.session_present, reason, props)
        )
        self.client.on_subscribe = lambda c, u, mid, reasons, props: self.subscribed.put(reasons)
        self.client.on_unsubscribe = lambda c, u, mid, reasons, props: self.unsubscribed.put(reasons)
        self.client.on_publish = lambda c, u, mid, reason, props: self.published.put((mid, reason))
        self.client.on_disconnect = lambda c, u, flags, reason, props: self.disconnected.put(reason)
        if will is not None:
            self.client.will_set(**will)
        options = {}
        if V5:
            options["clean_start"] = clean
            options["properties"] = connect or properties(
                PacketTypes.CONNECT, SessionExpiryInterval=expiry
            )
        self.client.connect(HOST, int(PORT), keepalive=30, **options)
        self.client.loop_start()
        self.session_present, reason, self.connack = self.connected.get(timeout=DEADLINE)
        equal(reason.value, expect, "CONNACK")

    def subscribe(self, *topics, qos=2, options=None, props=None):
        if V5:
            wanted = [(PREFIX + t, options or SubscribeOptions(qos=qos)) for t in topics]
            self.client.subscribe(wanted, properties=props)
        else:
            self.client.subscribe([(PREFIX + topic, qos) for topic in topics])
        reasons = self.subscribed.get(timeout=DEADLINE)
        return [reason.value for reason in reasons]

    def unsubscribe(self, *topics):
        self.client.unsubscribe([PREFIX + topic for topic in topics])
        return [reason.value for reason in self.unsubscribed.get(timeout=DEADLINE)]

    def publish(self, topic, payload, qos=0, retain=False, props=None, wait=True):
        info = self.client.publish(PREFIX + topic, payload, qos, retain, props)
        if wait:
            info.wait_for_publish(DEADLINE)
            check(info.is_published(), f"QoS {qos} publish was not acknowledged")
        return info

    def receive(self):
        return self.messages.get(timeout=DEADLINE)

    def nothing_more(self, barrier):
        """Nothing waits: what is published now is the next message that comes."""
        barrier.publish("/barrier", b"barrier", 1)
        message = self.receive()
        equal(message.topic, PREFIX + "/barrier", "unexpected message")

    def close(self):
        self.client.disconnect()
        self.disconnected.get(timeout=DEADLINE)
        self.client.loop_stop()

    def die(self):
        """Cuts the connection without DISCONNECT."""
        self.client.socket().shutdown(socket.SHUT_RDWR)
        self.disconnected.get(timeout=DEADLINE)
        self.client.loop_stop()


def check(condition, what):
    if not condition:
        raise SystemExit(f"{VERSION} {CASE}: {what}")


def equal(found, wanted, what):
    check(found == wanted, f"{what}: {found!r} instead of {wanted!r}")


def connect():
    client = Client("c")
    equal(client.session_present, False, "session present")
    client.close()
    if VERSION != "v31":  # 3.1 needs a client identifier
        client = Client(None)
        if V5:
            check(client.connack.AssignedClientIdentifier, "no assigned client identifier")
        client.close()


def roundtrip():
    client = Client("c")
    for qos in (0, 1, 2):
        equal(client.subscribe(f"/t{qos}", qos=qos), [qos], "granted QoS")
        for payload in (b"", b"x", bytes(range(256)), b"y" * 20_000):
            client.publish(f"/t{qos}", payload, qos)
            message = client.receive()
            equal(message.payload, payload, "payload")
            equal(message.topic, f"{PREFIX}/t{qos}", "topic")
            equal(message.qos, qos, "QoS")
            equal(message.retain, False, "retain")
    # The lower of both qualities holds.
    client.publish("/t1", b"down", 2)
    equal(client.receive().qos, 1, "QoS of a subscription at 1")
    client.unsubscribe("/t1")
    client.publish("/t1", b"gone", 1)
    client.publish("/t2", b"last", 1)
    equal(client.receive().payload, b"last", "after unsubscribe")
    client.close()


def retained():
    client = Client("c")
    client.publish("/r/one", b"old", 1, retain=True)
    client.publish("/r/one", b"new", 1, retain=True)
    client.publish("/r/two", b"two", 2, retain=True)
    late = Client("late")
    late.subscribe("/r/#")
    found = sorted((m.topic, m.payload, m.retain) for m in (late.receive(), late.receive()))
    equal(
        found,
        [(PREFIX + "/r/one", b"new", True), (PREFIX + "/r/two", b"two", True)],
        "retained messages",
    )
    client.publish("/r/one", b"live", 1, retain=True)
    message = late.receive()
    equal((message.payload, message.retain), (b"live", False), "a live message")
    for name in ("one", "two"):
        client.publish(f"/r/{name}", b"", 1, retain=True)
        equal(late.receive().payload, b"", "the empty payload is delivered")
    later = Client("later")
    later.subscribe("/r/#", "/barrier")
    later.nothing_more(client)
    for each in (client, late, later):
        each.close()


def will():
    watcher = Client("w")
    watcher.subscribe("/will", "/barrier")
    for qos in (0, 1, 2):
        payload = b"gone %d" % qos
        dying = Client("d", will={"topic": PREFIX + "/will", "payload": payload, "qos": qos})
        dying.die()
        message = watcher.receive()
        equal((message.payload, message.qos), (payload, qos), "will")
    polite = Client("d", will={"topic": PREFIX + "/will", "payload": b"never", "qos": 1})
    polite.close()
    watcher.nothing_more(watcher)
    keeper = {"topic": PREFIX + "/will", "payload": b"kept", "qos": 1, "retain": True}
    Client("d", will=keeper).die()
    equal(watcher.receive().payload, b"kept", "retained will")
    late = Client("l")
    late.subscribe("/will")
    message = late.receive()
    equal((message.payload, message.retain), (b"kept", True), "retained will, later")
    watcher.publish("/will", b"", 1, retain=True)
    watcher.close()
    late.close()


def session():
    first = Client("s", clean=False, expiry=600)
    equal(first.session_present, False, "session present at first")
    first.subscribe("/q1", qos=1)
    first.subscribe("/q2", qos=2)
    first.close()
    sender = Client("p")
    for n in range(100):
        sender.publish("/q1", b"%d" % n, 1, wait=False)
        sender.publish("/q2", b"%d" % n, 2, wait=n == 99)
    second = Client("s", clean=False, expiry=600)
    check(VERSION == "v31" or second.session_present, "no session present")
    heard = {"q1": [], "q2": []}
    for _ in range(200):
        message = second.receive()
        heard[message.topic[-2:]].append(int(message.payload))
    equal(heard["q1"], list(range(100)), "queued at QoS 1")
    equal(heard["q2"], list(range(100)), "queued at QoS 2")
    sender.publish("/q1", b"live", 1)
    equal(second.receive().payload, b"live", "subscription of the session")
    second.close()
    third = Client("s", clean=True)
    equal(third.session_present, False, "session present after a clean start")
    third.subscribe("/barrier")
    sender.publish("/q1", b"lost", 1)
    third.nothing_more(sender)
    third.close()
    sender.close()


def wildcard():
    client = Client("c")
    for filter_, yes, no in (
        ("/a/+/c", ["/a/b/c", "/a//c"], ["/a/b", "/a/b/c/d", "/a/c"]),
        ("/a/#", ["/a", "/a/b", "/a/b/c/d"], ["/ab", "/b"]),
        ("/+", ["/x", "/"], ["/x/y"]),
        ("/+/+/#", ["/x/y", "/x/y/z"], ["/x"]),
    ):
        client.subscribe(filter_)
        for topic in no + yes:
            client.publish(topic, topic.encode(), 1)
        heard = [client.receive().payload.decode() for _ in yes]
        equal(heard, yes, f"heard by {filter_}")
        client.unsubscribe(filter_)
    client.close()


def shared():
    first, second, sender = Client("a"), Client("b"), Client("p")
    for member in (first, second):
        member.client.subscribe(f"$share/group/{PREFIX}/job", 1)
        member.subscribed.get(timeout=DEADLINE)
    for n in range(100):
        sender.publish("/job", b"%d" % n, 1)
    deadline = time.monotonic() + DEADLINE
    while first.messages.qsize() + second.messages.qsize() < 100:
        check(time.monotonic() < deadline, "shared messages are missing")
        time.sleep(0.01)
    heard = [[int(m.messages.get().payload) for _ in range(m.messages.qsize())] for m in (first, second)]
    equal(sorted(heard[0] + heard[1]), list(range(100)), "each message once")
    check(heard[0] and heard[1], "one member had all of the work")
    for each in (first, second, sender):
        each.close()


def big():
    client = Client("c")
    payload = bytes(i * 7 & 0xFF for i in range(1 << 20))
    client.subscribe("/big")
    for qos in (0, 1, 2):
        client.publish("/big", payload, qos)
        message = client.receive()
        check(message.payload == payload, f"1 MiB at QoS {qos} came changed")
        equal(message.qos, qos, "QoS")
    client.close()


def order():
    sender, receiver = Client("p"), Client("r")
    for qos in (0, 1, 2):
        equal(receiver.subscribe(f"/o{qos}", qos=qos), [qos], "granted QoS")
        for n in range(1000):
            sender.publish(f"/o{qos}", b"%d" % n, qos, wait=False)
        heard = [int(receiver.receive().payload) for _ in range(1000)]
        equal(heard, list(range(1000)), f"order at QoS {qos}")
    sender.close()
    receiver.close()


def v5_properties():
    client = Client("c")
    client.subscribe("/p")
    sent = properties(
        PacketTypes.PUBLISH,
        PayloadFormatIndicator=1,
        MessageExpiryInterval=100,
        ContentType="text/plain",
        ResponseTopic="answer/here",
        CorrelationData=b"\x00\x01\xff",
    )
    sent.UserProperty = [("a", "1"), ("b", "2"), ("a", "ünï")]
    client.publish("/p", "text", 1, props=sent)
    got = client.receive().properties
    equal(got.PayloadFormatIndicator, 1, "payload format indicator")
    check(0 < got.MessageExpiryInterval <= 100, "message expiry interval")
    equal(got.ContentType, "text/plain", "content type")
    equal(got.ResponseTopic, "answer/here", "response topic")
    equal(got.CorrelationData, b"\x00\x01\xff", "correlation data")
    equal(got.UserProperty, sent.UserProperty, "user properties")
    # No local, retain as published and retain handling.
    client.unsubscribe("/p")
    client.subscribe("/local", options=SubscribeOptions(qos=1, noLocal=True))
    client.subscribe("/rap", options=SubscribeOptions(qos=1, retainAsPublished=True))
    client.publish("/local", b"own", 1)
    client.publish("/rap", b"kept", 1, retain=True)
    message = client.receive()
    equal((message.payload, message.retain), (b"kept", True), "retain as published")
    never = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
    once = SubscribeOptions(
        qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB, retainAsPublished=True
    )
    other = Client("o")
    other.subscribe("/rap", options=never)
    other.unsubscribe("/rap")
    other.subscribe("/rap", options=once)
    equal(other.receive().payload, b"kept", "retain handling 1, new subscription")
    other.subscribe("/rap", options=once)
    client.publish("/rap", b"", 1, retain=True)
    equal(other.receive().payload, b"", "retain handling 1, old subscription")
    other.close()
    client.close()


def request_response():
    server, client = Client("s"), Client("c")
    server.subscribe("/request", qos=1)
    client.subscribe("/response", qos=1)
    asked = properties(
        PacketTypes.PUBLISH, ResponseTopic=PREFIX + "/response", CorrelationData=b"42"
    )
    client.publish("/request", b"six times seven", 1, props=asked)
    request = server.receive()
    answer = properties(PacketTypes.PUBLISH, CorrelationData=request.properties.CorrelationData)
    server.client.publish(request.properties.ResponseTopic, b"forty-two", 1, properties=answer)
    response = client.receive()
    equal(response.payload, b"forty-two", "response")
    equal(response.properties.CorrelationData, b"42", "correlation data")
    server.close()
    client.close()


def topic_alias():
    asking = properties(PacketTypes.CONNECT, TopicAliasMaximum=10)
    client = Client("c", connect=asking)
    maximum = getattr(client.connack, "TopicAliasMaximum", 0)
    check(maximum >= 1, "the broker takes no topic aliases")
    client.subscribe("/alias", "/other")
    aliased = properties(PacketTypes.PUBLISH, TopicAlias=1)
    for qos in (0, 1, 2):
        client.publish("/alias", b"set", qos, props=aliased)
        client.client.publish("", b"used", qos, properties=aliased).wait_for_publish(DEADLINE)
        for payload in (b"set", b"used"):
            message = client.receive()
            # paho does not resolve aliases that the broker sets: it leaves the topic empty.
            check(message.topic in ("", PREFIX + "/alias"), f"topic {message.topic!r}")
            equal(message.payload, payload, "payload")
    client.publish("/other", b"moved", 1, props=aliased)
    client.client.publish("", b"again", 1, properties=aliased).wait_for_publish(DEADLINE)
    equal([client.receive().payload for _ in range(2)], [b"moved", b"again"], "moved alias")
    client.close()
    broken = Client("c")
    beyond = properties(PacketTypes.PUBLISH, TopicAlias=maximum + 1 if maximum < 65535 else 65535)
    if maximum < 65535:
        broken.publish("/alias", b"x", 0, props=beyond, wait=False)
        equal(broken.disconnected.get(timeout=DEADLINE).value, 0x94, "topic alias invalid")


def reason_codes():
    client = Client("c")
    client.publish("/nobody", b"", 1)
    equal(client.published.get(timeout=DEADLINE)[1].value, 0x10, "PUBACK: no matching subscribers")
    client.publish("/nobody", b"", 2)
    equal(client.published.get(timeout=DEADLINE)[0] > 0, True, "QoS 2 publish")
    equal(client.unsubscribe("/nothing"), [0x11], "UNSUBACK: no subscription existed")
    client.subscribe("/something")
    equal(client.unsubscribe("/something"), [0x00], "UNSUBACK")
    # Taken over by the same client identifier.
    again = Client("c")
    equal(client.disconnected.get(timeout=DEADLINE).value, 0x8E, "DISCONNECT: session taken over")
    again.close()
    # The will on DISCONNECT with 0x04.
    watcher = Client("w")
    watcher.subscribe("/will")
    leaving = Client("d", will={"topic": PREFIX + "/will", "payload": b"with will", "qos": 1})
    leaving.client.disconnect(reasoncode=paho.ReasonCodes(PacketTypes.DISCONNECT, identifier=4))
    equal(watcher.receive().payload, b"with will", "will on 0x04")
    watcher.close()


def subscription_ids():
    client = Client("c")
    for number, filter_ in ((1, "/s/+"), (268_435_455, "/s/x")):
        props = properties(PacketTypes.SUBSCRIBE)
        props.SubscriptionIdentifier = number
        client.subscribe(filter_, props=props)
    client.publish("/s/y", b"y", 1)
    equal(client.receive().properties.SubscriptionIdentifier, [1], "one identifier")
    client.publish("/s/x", b"x", 1)
    found = list(client.receive().properties.SubscriptionIdentifier)
    if len(found) == 1:  # one copy for each subscription is allowed too
        found += client.receive().properties.SubscriptionIdentifier
    equal(sorted(found), [1, 268_435_455], "both identifiers")
    client.close()


def will_delay():
    watcher = Client("w")
    watcher.subscribe("/will")
    delayed = properties(PacketTypes.WILLMESSAGE, WillDelayInterval=1)
    message = {"topic": PREFIX + "/will", "payload": b"late", "qos": 1, "properties": delayed}
    dying = Client("d", expiry=60, will=message)
    dying.die()
    died = time.monotonic()
    equal(watcher.receive().payload, b"late", "delayed will")
    check(time.monotonic() - died > 0.5, "the will did not wait for its delay")
    # A session that is back in time has no will to send.
    delayed.WillDelayInterval = 3600
    message["payload"] = b"never"
    Client("d", clean=False, expiry=60, will=message).die()
    back = Client("d", clean=False, expiry=0)
    check(back.session_present, "no session present")
    back.close()
    watcher.subscribe("/barrier")
    watcher.nothing_more(watcher)
    watcher.close()


def watchdog():
    print(f"{VERSION} {CASE}: took too long", file=sys.stderr)
    import faulthandler, os

    faulthandler.dump_traceback()
    os._exit(1)


timer = threading.Timer(80, watchdog)
timer.daemon = True
timer.start()
{"properties": v5_properties}.get(CASE, globals().get(CASE))()
