// MQTT.js (npm) against a broker: HOST PORT VERSION CASE PREFIX; see main.rs.
'use strict';

const mqtt = require(process.env.MQTT_JS);

const [HOST, PORT, VERSION, CASE, PREFIX] = process.argv.slice(2);
const V5 = VERSION === 'v5';
const PROTOCOL = {
  v31: { protocolId: 'MQIsdp', protocolVersion: 3 },
  v311: { protocolId: 'MQTT', protocolVersion: 4 },
  v5: { protocolId: 'MQTT', protocolVersion: 5 },
}[VERSION];
const DEADLINE = 30_000;

function check(condition, what) {
  if (!condition) throw new Error(what);
}

function equal(found, wanted, what) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(wanted)];
  check(a === b, `${what}: ${a} instead of ${b}`);
}

function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} in time`)), DEADLINE);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** What comes, in order, to be waited for. */
class Queue {
  constructor(what) {
    this.what = what;
    this.items = [];
    this.waiting = [];
  }
  put(item) {
    const waiting = this.waiting.shift();
    if (waiting) waiting(item);
    else this.items.push(item);
  }
  get() {
    if (this.items.length) return Promise.resolve(this.items.shift());
    return within(new Promise((resolve) => this.waiting.push(resolve)), this.what);
  }
}

class Client {
  static async connect(name, options = {}) {
    const self = new Client();
    self.messages = new Queue('message');
    self.disconnects = new Queue('DISCONNECT');
    self.closed = new Queue('close');
    self.client = mqtt.connect({
      ...PROTOCOL,
      host: HOST,
      port: Number(PORT),
      clientId: name === null ? '' : PREFIX + name,
      clean: true,
      keepalive: 30,
      reconnectPeriod: 0,
      ...options,
    });
    self.client.on('message', (topic, payload, packet) => self.messages.put(packet));
    self.client.on('disconnect', (packet) => self.disconnects.put(packet.reasonCode));
    self.client.on('close', () => self.closed.put(true));
    self.connack = await within(
      new Promise((resolve, reject) => {
        self.client.once('connect', resolve);
        self.client.once('error', reject);
      }),
      'CONNACK',
    );
    self.client.on('error', () => {});
    return self;
  }
  async subscribe(filters, options = { qos: 2 }) {
    const full = [filters].flat().map((filter) => PREFIX + filter);
    return (await within(this.client.subscribeAsync(full, options), 'SUBACK')).map((g) => g.qos);
  }
  unsubscribe(filter) {
    return new Promise((resolve, reject) => {
      this.client.unsubscribe(PREFIX + filter, (error, packet) =>
        error ? reject(error) : resolve(packet),
      );
    });
  }
  publish(topic, payload, qos = 0, options = {}) {
    const sent = this.client.publishAsync(PREFIX + topic, payload, { qos, ...options });
    return within(sent, `acknowledgement at QoS ${qos}`);
  }
  receive() {
    return this.messages.get();
  }
  async text() {
    return (await this.receive()).payload.toString();
  }
  /** Nothing waits: what is published now is the next message that comes. */
  async nothingMore(publisher) {
    await publisher.publish('/barrier', 'barrier', 1);
    const packet = await this.receive();
    equal(packet.topic, PREFIX + '/barrier', 'unexpected message');
  }
  close(options = {}) {
    return within(this.client.endAsync(false, options), 'end');
  }
  /** Cuts the connection without DISCONNECT. */
  async die() {
    this.client.stream.destroy();
    await this.closed.get();
    await this.client.endAsync(true);
  }
}

const count = (n) => Array.from({ length: n }, (_, i) => i);

const cases = {
  async connect() {
    const client = await Client.connect('c');
    equal(client.connack.sessionPresent, false, 'session present');
    await client.close();
    if (VERSION === 'v31') return; // 3.1 needs a client identifier
    const nameless = await Client.connect(null);
    if (V5) {
      check(nameless.connack.properties.assignedClientIdentifier, 'no assigned client identifier');
    }
    await nameless.close();
  },

  async roundtrip() {
    const client = await Client.connect('c');
    for (const qos of [0, 1, 2]) {
      equal(await client.subscribe(`/t${qos}`, { qos }), [qos], 'granted QoS');
      for (const payload of ['', 'x', Buffer.from(count(256)), 'y'.repeat(20_000)]) {
        await client.publish(`/t${qos}`, payload, qos);
        const packet = await client.receive();
        check(packet.payload.equals(Buffer.from(payload)), 'payload');
        equal(packet.topic, `${PREFIX}/t${qos}`, 'topic');
        equal([packet.qos, packet.retain, packet.dup], [qos, false, false], 'QoS and flags');
      }
    }
    await client.publish('/t1', 'down', 2);
    equal((await client.receive()).qos, 1, 'QoS of a subscription at 1');
    await client.unsubscribe('/t1');
    await client.publish('/t1', 'gone', 1);
    await client.publish('/t2', 'last', 1);
    equal(await client.text(), 'last', 'after unsubscribe');
    await client.close();
  },

  async retained() {
    const client = await Client.connect('c');
    const retain = { retain: true };
    await client.publish('/r/one', 'old', 1, retain);
    await client.publish('/r/one', 'new', 1, retain);
    await client.publish('/r/two', 'two', 2, retain);
    const late = await Client.connect('late');
    await late.subscribe('/r/#');
    const packets = [await late.receive(), await late.receive()];
    equal(
      packets.map((p) => `${p.topic} ${p.payload} ${p.retain}`).sort(),
      [`${PREFIX}/r/one new true`, `${PREFIX}/r/two two true`],
      'retained messages',
    );
    await client.publish('/r/one', 'live', 1, retain);
    const live = await late.receive();
    equal([live.payload.toString(), live.retain], ['live', false], 'a live message');
    for (const name of ['one', 'two']) {
      await client.publish(`/r/${name}`, '', 1, retain);
      equal(await late.text(), '', 'the empty payload is delivered');
    }
    const later = await Client.connect('later');
    await later.subscribe(['/r/#', '/barrier']);
    await later.nothingMore(client);
    for (const each of [client, late, later]) await each.close();
  },

  async will() {
    const watcher = await Client.connect('w');
    await watcher.subscribe(['/will', '/barrier']);
    const topic = PREFIX + '/will';
    for (const qos of [0, 1, 2]) {
      const will = { topic, payload: Buffer.from(`gone ${qos}`), qos, retain: false };
      await (await Client.connect('d', { will })).die();
      const packet = await watcher.receive();
      equal([packet.payload.toString(), packet.qos], [`gone ${qos}`, qos], 'will');
    }
    const never = { topic, payload: Buffer.from('never'), qos: 1, retain: false };
    await (await Client.connect('d', { will: never })).close();
    await watcher.nothingMore(watcher);
    const kept = { topic, payload: Buffer.from('kept'), qos: 1, retain: true };
    await (await Client.connect('d', { will: kept })).die();
    equal(await watcher.text(), 'kept', 'retained will');
    const late = await Client.connect('l');
    await late.subscribe('/will');
    const packet = await late.receive();
    equal([packet.payload.toString(), packet.retain], ['kept', true], 'retained will, later');
    await watcher.publish('/will', '', 1, { retain: true });
    await watcher.close();
    await late.close();
  },

  async session() {
    const keep = { clean: false };
    if (V5) keep.properties = { sessionExpiryInterval: 600 };
    const first = await Client.connect('s', keep);
    equal(first.connack.sessionPresent, false, 'session present at first');
    await first.subscribe('/q1', { qos: 1 });
    await first.subscribe('/q2', { qos: 2 });
    await first.close();
    const sender = await Client.connect('p');
    const sent = [];
    for (const n of count(100)) {
      sent.push(sender.publish('/q1', `${n}`, 1), sender.publish('/q2', `${n}`, 2));
    }
    await Promise.all(sent);
    const second = await Client.connect('s', keep);
    check(VERSION === 'v31' || second.connack.sessionPresent, 'no session present');
    const heard = { q1: [], q2: [] };
    for (let n = 0; n < 200; n++) {
      const packet = await second.receive();
      heard[packet.topic.slice(-2)].push(Number(packet.payload));
    }
    equal(heard.q1, count(100), 'queued at QoS 1');
    equal(heard.q2, count(100), 'queued at QoS 2');
    await sender.publish('/q1', 'live', 1);
    equal(await second.text(), 'live', 'subscription of the session');
    await second.close();
    const third = await Client.connect('s');
    equal(third.connack.sessionPresent, false, 'session present after a clean start');
    await third.subscribe('/barrier');
    await sender.publish('/q1', 'lost', 1);
    await third.nothingMore(sender);
    await third.close();
    await sender.close();
  },

  async wildcard() {
    const client = await Client.connect('c');
    for (const [filter, yes, no] of [
      ['/a/+/c', ['/a/b/c', '/a//c'], ['/a/b', '/a/b/c/d', '/a/c']],
      ['/a/#', ['/a', '/a/b', '/a/b/c/d'], ['/ab', '/b']],
      ['/+', ['/x', '/'], ['/x/y']],
      ['/+/+/#', ['/x/y', '/x/y/z'], ['/x']],
    ]) {
      await client.subscribe(filter);
      for (const topic of [...no, ...yes]) await client.publish(topic, topic, 1);
      const heard = [];
      for (const _ of yes) heard.push(await client.text());
      equal(heard, yes, `heard by ${filter}`);
      await client.unsubscribe(filter);
    }
    await client.close();
  },

  async shared() {
    const all = new Queue('shared message');
    const members = [await Client.connect('a'), await Client.connect('b')];
    for (const member of members) {
      member.heard = 0;
      member.messages.put = (packet) => {
        member.heard += 1;
        all.put(Number(packet.payload));
      };
      await member.client.subscribeAsync(`$share/group/${PREFIX}/job`, { qos: 1 });
    }
    const sender = await Client.connect('p');
    for (const n of count(100)) await sender.publish('/job', `${n}`, 1);
    const heard = [];
    for (let n = 0; n < 100; n++) heard.push(await all.get());
    equal(heard.sort((a, b) => a - b), count(100), 'each message once');
    check(members.every((m) => m.heard > 0), 'one member had all of the work');
    for (const each of [...members, sender]) await each.close();
  },

  async big() {
    const client = await Client.connect('c');
    const payload = Buffer.alloc(1 << 20, Buffer.from(count(251)));
    await client.subscribe('/big');
    for (const qos of [0, 1, 2]) {
      await client.publish('/big', payload, qos);
      const packet = await client.receive();
      check(packet.payload.equals(payload), `1 MiB at QoS ${qos} came changed`);
      equal(packet.qos, qos, 'QoS');
    }
    await client.close();
  },

  async order() {
    const sender = await Client.connect('p');
    const receiver = await Client.connect('r');
    for (const qos of [0, 1, 2]) {
      equal(await receiver.subscribe(`/o${qos}`, { qos }), [qos], 'granted QoS');
      const sent = count(1000).map((n) => sender.publish(`/o${qos}`, `${n}`, qos));
      const heard = [];
      for (let n = 0; n < 1000; n++) heard.push(Number(await receiver.text()));
      await Promise.all(sent);
      equal(heard, count(1000), `order at QoS ${qos}`);
    }
    await sender.close();
    await receiver.close();
  },

  async properties() {
    const client = await Client.connect('c');
    await client.subscribe('/p');
    const properties = {
      payloadFormatIndicator: true,
      messageExpiryInterval: 100,
      contentType: 'text/plain',
      responseTopic: 'answer/here',
      correlationData: Buffer.from([0, 1, 255]),
      userProperties: { a: ['1', 'ünï'], b: '2' },
    };
    await client.publish('/p', 'text', 1, { properties });
    const got = (await client.receive()).properties;
    equal(got.payloadFormatIndicator, true, 'payload format indicator');
    check(got.messageExpiryInterval > 0 && got.messageExpiryInterval <= 100, 'message expiry');
    equal(got.contentType, 'text/plain', 'content type');
    equal(got.responseTopic, 'answer/here', 'response topic');
    check(got.correlationData.equals(properties.correlationData), 'correlation data');
    equal({ ...got.userProperties }, properties.userProperties, 'user properties');
    // No local, retain as published and retain handling.
    await client.unsubscribe('/p');
    await client.subscribe('/local', { qos: 1, nl: true });
    await client.subscribe('/rap', { qos: 1, rap: true });
    await client.publish('/local', 'own', 1);
    await client.publish('/rap', 'kept', 1, { retain: true });
    const kept = await client.receive();
    equal([kept.payload.toString(), kept.retain], ['kept', true], 'retain as published');
    const other = await Client.connect('o');
    await other.subscribe('/rap', { qos: 1, rh: 2 });
    await other.unsubscribe('/rap');
    await other.subscribe('/rap', { qos: 1, rh: 1 });
    equal(await other.text(), 'kept', 'retain handling 1, new subscription');
    await other.subscribe('/rap', { qos: 1, rh: 1 });
    await client.publish('/rap', '', 1, { retain: true });
    equal(await other.text(), '', 'retain handling 1, old subscription');
    await other.close();
    await client.close();
  },

  async request_response() {
    const server = await Client.connect('s');
    const client = await Client.connect('c');
    await server.subscribe('/request', { qos: 1 });
    await client.subscribe('/response', { qos: 1 });
    const asked = { responseTopic: PREFIX + '/response', correlationData: Buffer.from('42') };
    await client.publish('/request', 'six times seven', 1, { properties: asked });
    const { responseTopic, correlationData } = (await server.receive()).properties;
    await server.client.publishAsync(responseTopic, 'forty-two', {
      qos: 1,
      properties: { correlationData },
    });
    const response = await client.receive();
    equal(response.payload.toString(), 'forty-two', 'response');
    equal(response.properties.correlationData.toString(), '42', 'correlation data');
    await server.close();
    await client.close();
  },

  async topic_alias() {
    const client = await Client.connect('c', {
      properties: { topicAliasMaximum: 10 },
      autoUseTopicAlias: true,
      autoAssignTopicAlias: true,
    });
    const maximum = client.connack.properties.topicAliasMaximum || 0;
    check(maximum >= 1, 'the broker takes no topic aliases');
    await client.subscribe('/+/alias');
    // More topics than aliases in either direction, each three times.
    for (const round of count(3)) {
      for (const n of count(25)) {
        const topic = `/${n}/alias`;
        await client.publish(topic, `${round}`, n % 3);
        const packet = await client.receive();
        const alias = packet.properties && packet.properties.topicAlias;
        check(packet.topic === PREFIX + topic || alias, `topic ${packet.topic}`);
        equal(packet.payload.toString(), `${round}`, 'payload');
      }
    }
    await client.close();
  },

  async reason_codes() {
    const client = await Client.connect('c');
    const acks = [];
    client.client.on('packetreceive', (packet) => acks.push([packet.cmd, packet.reasonCode]));
    await client.publish('/nobody', '', 1);
    equal(acks, [['puback', 0x10]], 'no matching subscribers');
    const missing = await client.unsubscribe('/nothing');
    equal([...missing.granted], [0x11], 'UNSUBACK: no subscription existed');
    await client.subscribe('/something');
    equal([...(await client.unsubscribe('/something')).granted], [0], 'UNSUBACK');
    const again = await Client.connect('c');
    equal(await client.disconnects.get(), 0x8e, 'DISCONNECT: session taken over');
    await again.close();
    const watcher = await Client.connect('w');
    await watcher.subscribe('/will');
    const will = { topic: PREFIX + '/will', payload: Buffer.from('with will'), qos: 1, retain: false };
    const leaving = await Client.connect('d', { will });
    await leaving.close({ reasonCode: 4 });
    equal(await watcher.text(), 'with will', 'will on 0x04');
    await watcher.close();
  },

  async subscription_ids() {
    const client = await Client.connect('c');
    await client.subscribe('/s/+', { qos: 2, properties: { subscriptionIdentifier: 1 } });
    await client.subscribe('/s/x', { qos: 2, properties: { subscriptionIdentifier: 268435455 } });
    const ids = async () => [(await client.receive()).properties.subscriptionIdentifier].flat();
    await client.publish('/s/y', 'y', 1);
    equal(await ids(), [1], 'one identifier');
    await client.publish('/s/x', 'x', 1);
    const found = await ids();
    if (found.length === 1) found.push(...(await ids())); // one copy for each is allowed too
    equal(found.sort(), [1, 268435455], 'both identifiers');
    await client.close();
  },

  async will_delay() {
    const watcher = await Client.connect('w');
    await watcher.subscribe(['/will', '/barrier']);
    const will = (text, willDelayInterval) => ({
      properties: { sessionExpiryInterval: 60 },
      will: {
        topic: PREFIX + '/will',
        payload: Buffer.from(text),
        qos: 1,
        retain: false,
        properties: { willDelayInterval },
      },
    });
    await (await Client.connect('d', will('late', 1))).die();
    const died = Date.now();
    equal(await watcher.text(), 'late', 'delayed will');
    check(Date.now() - died > 500, 'the will did not wait for its delay');
    await (await Client.connect('d', { clean: false, ...will('never', 3600) })).die();
    const back = await Client.connect('d', { clean: false });
    check(back.connack.sessionPresent, 'no session present');
    await back.close();
    await watcher.nothingMore(watcher);
    await watcher.close();
  },
};

within(cases[CASE](), 'end of the case').then(
  () => process.exit(0),
  (error) => {
    console.error(`${VERSION} ${CASE}: ${error.stack || error}`);
    process.exit(1);
  },
);
