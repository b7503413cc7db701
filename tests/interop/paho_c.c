/* Paho C (libpaho-mqtt3c) against a broker: HOST PORT VERSION CASE PREFIX; see main.rs. */

#include <MQTTClient.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { DEADLINE_SECS = 30, QUEUE = 4096, MAX_CLIENTS = 8, BIG = 1 << 20, MANY = 1000 };

static const char *program, *host, *port, *version, *test_case, *prefix;
static int level;
static char uri[256];

#define FAIL(...)                                                                                  \
    do {                                                                                           \
        fprintf(stderr, "%s %s, line %d: ", version, test_case, __LINE__);                         \
        fprintf(stderr, __VA_ARGS__);                                                              \
        fputc('\n', stderr);                                                                       \
        _exit(1);                                                                                  \
    } while (0)
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) FAIL(__VA_ARGS__);                                                       \
    } while (0)

typedef struct {
    char topic[256];
    MQTTClient_message *message;
} Item;

/* A client and what happened to it, filled by Paho's thread and waited for by ours. */
typedef struct {
    MQTTClient handle;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Item items[QUEUE];
    unsigned first, count;
    int disconnect_reason; /* -1: none came */
    int puback_reason;     /* -1: none came */
    int session_present;
    int topic_alias_maximum;
    int assigned_id;
} Client;

typedef struct {
    int keep;        /* the opposite of clean session or clean start */
    unsigned expiry; /* 5.0: seconds */
    int no_id;
    const char *will_payload;
    int will_qos, will_retain;
    unsigned will_delay;
} Options;

static Client clients[MAX_CLIENTS];
static int client_count;

static const char *full(const char *topic)
{
    static char names[8][256];
    static int next;
    char *name = names[next++ % 8];
    snprintf(name, sizeof names[0], "%s%s", prefix, topic);
    return name;
}

static int on_message(void *context, char *topic, int length, MQTTClient_message *message)
{
    Client *client = context;
    pthread_mutex_lock(&client->lock);
    CHECK(client->count < QUEUE, "too many messages wait");
    Item *item = &client->items[(client->first + client->count++) % QUEUE];
    snprintf(item->topic, sizeof item->topic, "%.*s", length ? length : (int)strlen(topic), topic);
    item->message = message;
    pthread_cond_signal(&client->changed);
    pthread_mutex_unlock(&client->lock);
    MQTTClient_free(topic);
    return 1;
}

static void on_disconnected(void *context, MQTTProperties *properties, enum MQTTReasonCodes reason)
{
    Client *client = context;
    (void)properties;
    pthread_mutex_lock(&client->lock);
    client->disconnect_reason = reason;
    pthread_cond_signal(&client->changed);
    pthread_mutex_unlock(&client->lock);
}

static void on_published(void *context, int token, int packet_type, MQTTProperties *properties,
                         enum MQTTReasonCodes reason)
{
    Client *client = context;
    (void)token, (void)packet_type, (void)properties;
    pthread_mutex_lock(&client->lock);
    client->puback_reason = reason;
    pthread_cond_signal(&client->changed);
    pthread_mutex_unlock(&client->lock);
}

static struct timespec deadline(void)
{
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_sec += DEADLINE_SECS;
    return at;
}

/* Waits until the condition holds; the client's lock is held behind it. */
#define LOCK_WHEN(client, condition, what)                                                         \
    do {                                                                                           \
        struct timespec at = deadline();                                                           \
        pthread_mutex_lock(&(client)->lock);                                                       \
        while (!(condition))                                                                       \
            CHECK(!pthread_cond_timedwait(&(client)->changed, &(client)->lock, &at),               \
                  "no %s in time", what);                                                          \
    } while (0)

static Item receive(Client *client)
{
    LOCK_WHEN(client, client->count > 0, "message");
    Item item = client->items[client->first++ % QUEUE];
    client->count--;
    pthread_mutex_unlock(&client->lock);
    return item;
}

static void release(Item *item) { MQTTClient_freeMessage(&item->message); }

static int has_text(const Item *item, const char *text)
{
    return item->message->payloadlen == (int)strlen(text) &&
           memcmp(item->message->payload, text, strlen(text)) == 0;
}

static void expect(Client *client, const char *topic, const char *text, int qos, int retained)
{
    Item item = receive(client);
    CHECK(strcmp(item.topic, full(topic)) == 0, "topic %s, not %s", item.topic, full(topic));
    CHECK(has_text(&item, text), "'%.*s' came, not '%s'", item.message->payloadlen,
          (char *)item.message->payload, text);
    CHECK(item.message->qos == qos, "QoS %d, not %d", item.message->qos, qos);
    CHECK(item.message->retained == retained, "retained %d of '%s'", item.message->retained, text);
    release(&item);
}

static int number_in(Client *client, const char *topic)
{
    Item item = receive(client);
    char text[16] = "";
    CHECK(item.message->payloadlen < 16, "a long payload");
    memcpy(text, item.message->payload, (size_t)item.message->payloadlen);
    if (topic) CHECK(strcmp(item.topic, full(topic)) == 0, "topic %s", item.topic);
    release(&item);
    return atoi(text);
}

static void add_int(MQTTProperties *properties, int id, unsigned value)
{
    MQTTProperty property = {.identifier = id};
    switch (MQTTProperty_getType(id)) {
    case MQTTPROPERTY_TYPE_BYTE: property.value.byte = (unsigned char)value; break;
    case MQTTPROPERTY_TYPE_TWO_BYTE_INTEGER: property.value.integer2 = (unsigned short)value; break;
    default: property.value.integer4 = value;
    }
    CHECK(MQTTProperties_add(properties, &property) == 0, "property %d", id);
}

static void add_text(MQTTProperties *properties, int id, const char *key, const char *value)
{
    MQTTProperty property = {.identifier = id};
    property.value.data = (MQTTLenString){(int)strlen(key), (char *)key};
    if (value) property.value.value = (MQTTLenString){(int)strlen(value), (char *)value};
    CHECK(MQTTProperties_add(properties, &property) == 0, "property %d", id);
}

static int text_is(MQTTProperties *properties, int id, const char *wanted)
{
    MQTTProperty *property = MQTTProperties_getProperty(properties, id);
    return property && property->value.data.len == (int)strlen(wanted) &&
           memcmp(property->value.data.data, wanted, strlen(wanted)) == 0;
}

static Client *connect_with(const char *name, Options options)
{
    CHECK(client_count < MAX_CLIENTS, "too many clients");
    Client *client = &clients[client_count++];
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->changed, NULL);
    client->disconnect_reason = client->puback_reason = -1;
    MQTTClient_createOptions create = MQTTClient_createOptions_initializer;
    create.MQTTVersion = level;
    int code = MQTTClient_createWithOptions(&client->handle, uri, options.no_id ? "" : full(name),
                                            MQTTCLIENT_PERSISTENCE_NONE, NULL, &create);
    CHECK(code == 0, "create: %d", code);
    MQTTClient_setCallbacks(client->handle, client, NULL, on_message, NULL);

    MQTTClient_willOptions will = MQTTClient_willOptions_initializer;
    MQTTClient_connectOptions connect = MQTTClient_connectOptions_initializer;
    MQTTClient_connectOptions connect5 = MQTTClient_connectOptions_initializer5;
    if (level == MQTTVERSION_5) connect = connect5;
    connect.MQTTVersion = level;
    connect.keepAliveInterval = 30;
    connect.connectTimeout = DEADLINE_SECS;
    connect.maxInflightMessages = 100;
    connect.reliable = 0;
    if (options.will_payload) {
        will.topicName = full("/will");
        will.message = options.will_payload;
        will.qos = options.will_qos;
        will.retained = options.will_retain;
        connect.will = &will;
    }
    if (level == MQTTVERSION_5) {
        MQTTClient_setDisconnected(client->handle, client, on_disconnected);
        MQTTClient_setPublished(client->handle, client, on_published);
        connect.cleanstart = !options.keep;
        MQTTProperties properties = MQTTProperties_initializer;
        MQTTProperties will_properties = MQTTProperties_initializer;
        add_int(&properties, MQTTPROPERTY_CODE_SESSION_EXPIRY_INTERVAL, options.expiry);
        if (options.will_delay)
            add_int(&will_properties, MQTTPROPERTY_CODE_WILL_DELAY_INTERVAL, options.will_delay);
        MQTTResponse response =
            MQTTClient_connect5(client->handle, &connect, &properties, &will_properties);
        CHECK(response.reasonCode == 0, "CONNACK %d", response.reasonCode);
        client->topic_alias_maximum = MQTTProperties_getNumericValue(
            response.properties, MQTTPROPERTY_CODE_TOPIC_ALIAS_MAXIMUM);
        client->assigned_id = MQTTProperties_hasProperty(
            response.properties, MQTTPROPERTY_CODE_ASSIGNED_CLIENT_IDENTIFER);
        MQTTResponse_free(response);
        MQTTProperties_free(&properties);
        MQTTProperties_free(&will_properties);
    } else {
        connect.cleansession = !options.keep;
        code = MQTTClient_connect(client->handle, &connect);
        CHECK(code == 0, "CONNACK %d", code);
    }
    client->session_present = connect.returned.sessionPresent;
    return client;
}

static Client *connect_as(const char *name) { return connect_with(name, (Options){0}); }

static void leave(Client *client, enum MQTTReasonCodes reason)
{
    int code = level == MQTTVERSION_5
                   ? MQTTClient_disconnect5(client->handle, 5000, reason, NULL)
                   : MQTTClient_disconnect(client->handle, 5000);
    CHECK(code == 0, "disconnect: %d", code);
    MQTTClient_destroy(&client->handle);
}

static void leave_all(Client **all, int count)
{
    for (int i = 0; i < count; i++) leave(all[i], MQTTREASONCODE_SUCCESS);
}

/* The granted QoS or the reason code. */
static int subscribe_with(Client *client, const char *filter, int qos,
                          MQTTSubscribe_options *options, MQTTProperties *properties)
{
    if (level != MQTTVERSION_5) {
        char *filters[] = {(char *)filter};
        int codes[] = {qos};
        int code = MQTTClient_subscribeMany(client->handle, 1, filters, codes);
        CHECK(code == 0, "subscribe: %d", code);
        return codes[0];
    }
    MQTTResponse response =
        MQTTClient_subscribe5(client->handle, filter, qos, options, properties);
    int code = response.reasonCode;
    MQTTResponse_free(response);
    return code;
}

static void subscribe(Client *client, const char *topic, int qos)
{
    int granted = subscribe_with(client, full(topic), qos, NULL, NULL);
    CHECK(granted == qos, "granted %d, not %d", granted, qos);
}

static int unsubscribe(Client *client, const char *topic)
{
    if (level != MQTTVERSION_5) return MQTTClient_unsubscribe(client->handle, full(topic));
    MQTTResponse response = MQTTClient_unsubscribe5(client->handle, full(topic), NULL);
    int code = response.reasonCode;
    MQTTResponse_free(response);
    return code;
}

static void publish_raw(Client *client, const char *topic, const void *payload, int length, int qos,
                        int retained, MQTTProperties *properties, int wait)
{
    MQTTClient_message message = MQTTClient_message_initializer;
    message.payload = (void *)payload;
    message.payloadlen = length;
    message.qos = qos;
    message.retained = retained;
    MQTTClient_deliveryToken token = 0;
    int code;
    if (level == MQTTVERSION_5) {
        if (properties) message.properties = *properties;
        MQTTResponse response =
            MQTTClient_publishMessage5(client->handle, topic, &message, &token);
        code = response.reasonCode;
        MQTTResponse_free(response);
    } else {
        code = MQTTClient_publishMessage(client->handle, topic, &message, &token);
    }
    CHECK(code == 0, "publish: %d", code);
    if (wait && qos > 0) {
        code = MQTTClient_waitForCompletion(client->handle, token, DEADLINE_SECS * 1000UL);
        CHECK(code == 0, "no acknowledgement at QoS %d: %d", qos, code);
    }
}

static void publish(Client *client, const char *topic, const char *text, int qos, int retained)
{
    publish_raw(client, full(topic), text, (int)strlen(text), qos, retained, NULL, 1);
}

static void publish_number(Client *client, const char *topic, int number, int qos, int wait)
{
    char text[16];
    publish_raw(client, full(topic), text, sprintf(text, "%d", number), qos, 0, NULL, wait);
}

/* Nothing waits: what is published now is the next message that comes. */
static void nothing_more(Client *client, Client *publisher)
{
    publish(publisher, "/barrier", "barrier", 1, 0);
    expect(client, "/barrier", "barrier", 1, 0);
}

/* A process of its own connects with a will and dies without DISCONNECT. */
static void die(const char *text, int qos, int retain, unsigned delay, int keep)
{
    char numbers[4][16];
    sprintf(numbers[0], "%d", qos);
    sprintf(numbers[1], "%d", retain);
    sprintf(numbers[2], "%u", delay);
    sprintf(numbers[3], "%d", keep);
    const char *arguments[] = {program, host,       port,       version,    "die",      prefix,
                               text,    numbers[0], numbers[1], numbers[2], numbers[3], NULL};
    extern char **environ;
    pid_t child;
    int status;
    CHECK(posix_spawn(&child, program, NULL, NULL, (char **)arguments, environ) == 0, "spawn");
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the dying client failed");
}

static void run_connect(void)
{
    Client *client = connect_as("c");
    CHECK(!client->session_present, "session present");
    leave(client, MQTTREASONCODE_SUCCESS);
    if (level == MQTTVERSION_3_1) return; /* it needs a client identifier */
    client = connect_with("", (Options){.no_id = 1});
    CHECK(level != MQTTVERSION_5 || client->assigned_id, "no assigned client identifier");
    leave(client, MQTTREASONCODE_SUCCESS);
}

static void run_roundtrip(void)
{
    Client *client = connect_as("c");
    static char bytes[20000];
    for (int i = 0; i < (int)sizeof bytes; i++) bytes[i] = (char)(i % 256);
    const char *topics[] = {"/t0", "/t1", "/t2"};
    const int lengths[] = {0, 1, 256, sizeof bytes};
    for (int qos = 0; qos < 3; qos++) {
        subscribe(client, topics[qos], qos);
        for (int i = 0; i < 4; i++) {
            publish_raw(client, full(topics[qos]), bytes, lengths[i], qos, 0, NULL, 1);
            Item item = receive(client);
            CHECK(strcmp(item.topic, full(topics[qos])) == 0, "topic %s", item.topic);
            CHECK(item.message->payloadlen == lengths[i] &&
                      !memcmp(item.message->payload, bytes, (size_t)lengths[i]),
                  "payload of %d bytes at QoS %d", lengths[i], qos);
            CHECK(item.message->qos == qos && !item.message->retained, "QoS or flags");
            release(&item);
        }
    }
    publish(client, "/t1", "down", 2, 0);
    expect(client, "/t1", "down", 1, 0);
    CHECK(unsubscribe(client, "/t1") == 0, "unsubscribe");
    publish(client, "/t1", "gone", 1, 0);
    publish(client, "/t2", "last", 1, 0);
    expect(client, "/t2", "last", 1, 0);
    leave(client, MQTTREASONCODE_SUCCESS);
}

static void run_retained(void)
{
    Client *client = connect_as("c"), *late = connect_as("late"), *later = connect_as("later");
    publish(client, "/r/one", "old", 1, 1);
    publish(client, "/r/one", "new", 1, 1);
    publish(client, "/r/two", "two", 2, 1);
    subscribe(late, "/r/+", 2);
    int seen = 0;
    for (int i = 0; i < 2; i++) {
        Item item = receive(late);
        CHECK(item.message->retained, "no retain flag");
        seen |= has_text(&item, "new") ? 1 : has_text(&item, "two") ? 2 : 4;
        release(&item);
    }
    CHECK(seen == 3, "wrong retained messages");
    publish(client, "/r/one", "live", 1, 1);
    expect(late, "/r/one", "live", 1, 0);
    publish(client, "/r/one", "", 1, 1);
    publish(client, "/r/two", "", 1, 1);
    expect(late, "/r/one", "", 1, 0);
    expect(late, "/r/two", "", 1, 0);
    subscribe(later, "/r/#", 2);
    subscribe(later, "/barrier", 2);
    nothing_more(later, client);
    leave_all((Client *[]){client, late, later}, 3);
}

static void run_will(void)
{
    Client *watcher = connect_as("w"), *late = connect_as("l");
    subscribe(watcher, "/will", 2);
    subscribe(watcher, "/barrier", 1);
    for (int qos = 0; qos < 3; qos++) {
        die("gone", qos, 0, 0, 0);
        expect(watcher, "/will", "gone", qos, 0);
    }
    Client *polite = connect_with("d", (Options){.will_payload = "never", .will_qos = 1});
    leave(polite, MQTTREASONCODE_SUCCESS);
    nothing_more(watcher, watcher);
    die("kept", 1, 1, 0, 0);
    expect(watcher, "/will", "kept", 1, 0);
    subscribe(late, "/will", 2);
    expect(late, "/will", "kept", 1, 1);
    publish(watcher, "/will", "", 1, 1);
    leave_all((Client *[]){watcher, late}, 2);
}

static void run_session(void)
{
    Options keep = {.keep = 1, .expiry = 600};
    Client *first = connect_with("s", keep), *sender = connect_as("p");
    CHECK(!first->session_present, "session present at first");
    subscribe(first, "/q1", 1);
    subscribe(first, "/q2", 2);
    leave(first, MQTTREASONCODE_SUCCESS);
    for (int i = 0; i < 100; i++) {
        publish_number(sender, "/q1", i, 1, 0);
        publish_number(sender, "/q2", i, 2, i == 99);
    }
    Client *second = connect_with("s", keep);
    /* 3.1 has no such flag, and for 5.0 this library leaves it unset. */
    CHECK(level != MQTTVERSION_3_1_1 || second->session_present, "no session present");
    int next[2] = {0, 0};
    for (int i = 0; i < 200; i++) {
        Item item = receive(second);
        int which = item.topic[strlen(item.topic) - 1] - '1';
        char text[16];
        sprintf(text, "%d", next[which]++);
        CHECK(has_text(&item, text), "out of order at QoS %d", which + 1);
        CHECK(item.message->qos == which + 1, "QoS");
        release(&item);
    }
    publish(sender, "/q1", "live", 1, 0);
    expect(second, "/q1", "live", 1, 0);
    leave(second, MQTTREASONCODE_SUCCESS);
    Client *third = connect_as("s");
    CHECK(!third->session_present, "session present after a clean start");
    subscribe(third, "/barrier", 1);
    publish(sender, "/q1", "lost", 1, 0);
    nothing_more(third, sender);
    leave_all((Client *[]){sender, third}, 2);
}

static void run_wildcard(void)
{
    static const struct {
        const char *filter, *no[3], *yes[3];
    } table[] = {
        {"/a/+/c", {"/a/b", "/a/b/c/d", "/a/c"}, {"/a/b/c", "/a//c"}},
        {"/a/#", {"/ab", "/b"}, {"/a", "/a/b", "/a/b/c/d"}},
        {"/+", {"/x/y"}, {"/x", "/"}},
        {"/+/+/#", {"/x"}, {"/x/y", "/x/y/z"}},
    };
    Client *client = connect_as("c");
    for (size_t row = 0; row < sizeof table / sizeof *table; row++) {
        subscribe(client, table[row].filter, 1);
        for (int i = 0; i < 3 && table[row].no[i]; i++) publish(client, table[row].no[i], "no", 1, 0);
        for (int i = 0; i < 3 && table[row].yes[i]; i++) {
            publish(client, table[row].yes[i], "yes", 1, 0);
            expect(client, table[row].yes[i], "yes", 1, 0);
        }
        CHECK(unsubscribe(client, table[row].filter) == 0, "unsubscribe");
    }
    leave(client, MQTTREASONCODE_SUCCESS);
}

static void run_shared(void)
{
    Client *members[] = {connect_as("a"), connect_as("b")}, *sender = connect_as("p");
    char filter[300];
    sprintf(filter, "$share/group/%s", full("/job"));
    for (int i = 0; i < 2; i++)
        CHECK(subscribe_with(members[i], filter, 1, NULL, NULL) == 1, "shared subscription");
    for (int i = 0; i < 100; i++) publish_number(sender, "/job", i, 1, i == 99);
    static int seen[100];
    int heard[2] = {0, 0};
    time_t end = time(NULL) + DEADLINE_SECS;
    while (heard[0] + heard[1] < 100) {
        CHECK(time(NULL) < end, "%d of 100 shared messages", heard[0] + heard[1]);
        for (int i = 0; i < 2; i++) {
            pthread_mutex_lock(&members[i]->lock);
            int waiting = members[i]->count > 0;
            pthread_mutex_unlock(&members[i]->lock);
            if (!waiting) continue;
            int number = number_in(members[i], "/job");
            CHECK(number < 100 && !seen[number]++, "message %d came twice", number);
            heard[i]++;
        }
        usleep(1000);
    }
    CHECK(heard[0] && heard[1], "one member had all of the work");
    leave_all((Client *[]){members[0], members[1], sender}, 3);
}

static void run_big(void)
{
    static unsigned char payload[BIG];
    Client *client = connect_as("c");
    for (int i = 0; i < BIG; i++) payload[i] = (unsigned char)(i % 251);
    subscribe(client, "/big", 2);
    for (int qos = 0; qos < 3; qos++) {
        publish_raw(client, full("/big"), payload, BIG, qos, 0, NULL, 1);
        Item item = receive(client);
        CHECK(item.message->payloadlen == BIG && !memcmp(item.message->payload, payload, BIG),
              "1 MiB at QoS %d came changed", qos);
        CHECK(item.message->qos == qos, "QoS");
        release(&item);
    }
    leave(client, MQTTREASONCODE_SUCCESS);
}

static void run_order(void)
{
    static const char *const topics[] = {"/o0", "/o1", "/o2"};
    Client *sender = connect_as("p"), *receiver = connect_as("r");
    for (int qos = 0; qos < 3; qos++) {
        subscribe(receiver, topics[qos], qos);
        for (int i = 0; i < MANY; i++) publish_number(sender, topics[qos], i, qos, i == MANY - 1);
        for (int i = 0; i < MANY; i++) {
            int number = number_in(receiver, topics[qos]);
            CHECK(number == i, "%d instead of %d at QoS %d", number, i, qos);
        }
    }
    leave_all((Client *[]){sender, receiver}, 2);
}

static void run_properties(void)
{
    Client *client = connect_as("c"), *other = connect_as("o");
    subscribe(client, "/p", 1);
    MQTTProperties sent = MQTTProperties_initializer;
    add_int(&sent, MQTTPROPERTY_CODE_PAYLOAD_FORMAT_INDICATOR, 1);
    add_int(&sent, MQTTPROPERTY_CODE_MESSAGE_EXPIRY_INTERVAL, 100);
    add_text(&sent, MQTTPROPERTY_CODE_CONTENT_TYPE, "text/plain", NULL);
    add_text(&sent, MQTTPROPERTY_CODE_RESPONSE_TOPIC, "answer/here", NULL);
    add_text(&sent, MQTTPROPERTY_CODE_CORRELATION_DATA, "42", NULL);
    add_text(&sent, MQTTPROPERTY_CODE_USER_PROPERTY, "a", "1");
    add_text(&sent, MQTTPROPERTY_CODE_USER_PROPERTY, "a", "2");
    publish_raw(client, full("/p"), "text", 4, 1, 0, &sent, 1);
    Item item = receive(client);
    MQTTProperties *got = &item.message->properties;
    CHECK(MQTTProperties_getNumericValue(got, MQTTPROPERTY_CODE_PAYLOAD_FORMAT_INDICATOR) == 1,
          "payload format indicator");
    int expiry = MQTTProperties_getNumericValue(got, MQTTPROPERTY_CODE_MESSAGE_EXPIRY_INTERVAL);
    CHECK(expiry > 0 && expiry <= 100, "message expiry interval %d", expiry);
    CHECK(text_is(got, MQTTPROPERTY_CODE_CONTENT_TYPE, "text/plain"), "content type");
    CHECK(text_is(got, MQTTPROPERTY_CODE_RESPONSE_TOPIC, "answer/here"), "response topic");
    CHECK(text_is(got, MQTTPROPERTY_CODE_CORRELATION_DATA, "42"), "correlation data");
    for (int i = 0; i < 2; i++) {
        MQTTProperty *user = MQTTProperties_getPropertyAt(got, MQTTPROPERTY_CODE_USER_PROPERTY, i);
        CHECK(user && user->value.data.data[0] == 'a' && user->value.value.data[0] == '1' + i,
              "user property %d", i);
    }
    release(&item);
    MQTTProperties_free(&sent);

    /* No local, retain as published and retain handling. */
    MQTTSubscribe_options no_local = MQTTSubscribe_options_initializer;
    MQTTSubscribe_options as_published = MQTTSubscribe_options_initializer;
    MQTTSubscribe_options never = MQTTSubscribe_options_initializer;
    MQTTSubscribe_options once = MQTTSubscribe_options_initializer;
    no_local.noLocal = as_published.retainAsPublished = once.retainAsPublished = 1;
    never.retainHandling = 2, once.retainHandling = 1;
    CHECK(subscribe_with(client, full("/local"), 1, &no_local, NULL) == 1, "no local");
    CHECK(subscribe_with(client, full("/rap"), 1, &as_published, NULL) == 1, "as published");
    publish(client, "/local", "own", 1, 0);
    publish(client, "/rap", "kept", 1, 1);
    expect(client, "/rap", "kept", 1, 1);
    CHECK(subscribe_with(other, full("/rap"), 1, &never, NULL) == 1, "retain handling 2");
    CHECK(unsubscribe(other, "/rap") == 0, "unsubscribe");
    CHECK(subscribe_with(other, full("/rap"), 1, &once, NULL) == 1, "retain handling 1");
    expect(other, "/rap", "kept", 1, 1);
    CHECK(subscribe_with(other, full("/rap"), 1, &once, NULL) == 1, "retain handling 1");
    publish(client, "/rap", "", 1, 1);
    expect(other, "/rap", "", 1, 1);
    leave_all((Client *[]){client, other}, 2);
}

static void run_request_response(void)
{
    Client *server = connect_as("s"), *client = connect_as("c");
    subscribe(server, "/request", 1);
    subscribe(client, "/response", 1);
    MQTTProperties asked = MQTTProperties_initializer, answer = MQTTProperties_initializer;
    add_text(&asked, MQTTPROPERTY_CODE_RESPONSE_TOPIC, full("/response"), NULL);
    add_text(&asked, MQTTPROPERTY_CODE_CORRELATION_DATA, "42", NULL);
    publish_raw(client, full("/request"), "?", 1, 1, 0, &asked, 1);
    Item request = receive(server);
    MQTTProperty *topic = MQTTProperties_getProperty(&request.message->properties,
                                                     MQTTPROPERTY_CODE_RESPONSE_TOPIC);
    MQTTProperty *data = MQTTProperties_getProperty(&request.message->properties,
                                                    MQTTPROPERTY_CODE_CORRELATION_DATA);
    CHECK(topic && data, "the request came without its properties");
    char name[256];
    snprintf(name, sizeof name, "%.*s", topic->value.data.len, topic->value.data.data);
    CHECK(MQTTProperties_add(&answer, data) == 0, "property");
    publish_raw(server, name, "forty-two", 9, 1, 0, &answer, 1);
    Item response = receive(client);
    CHECK(has_text(&response, "forty-two"), "response");
    CHECK(text_is(&response.message->properties, MQTTPROPERTY_CODE_CORRELATION_DATA, "42"),
          "correlation data");
    release(&request);
    release(&response);
    MQTTProperties_free(&asked);
    MQTTProperties_free(&answer);
    leave_all((Client *[]){server, client}, 2);
}

static void run_topic_alias(void)
{
    Client *client = connect_as("c");
    CHECK(client->topic_alias_maximum >= 1, "the broker takes no topic aliases");
    subscribe(client, "/alias", 2);
    subscribe(client, "/other", 2);
    MQTTProperties alias = MQTTProperties_initializer;
    add_int(&alias, MQTTPROPERTY_CODE_TOPIC_ALIAS, 1);
    for (int qos = 0; qos < 3; qos++) {
        publish_raw(client, full("/alias"), "set", 3, qos, 0, &alias, 1);
        publish_raw(client, "", "used", 4, qos, 0, &alias, 1);
        expect(client, "/alias", "set", qos, 0);
        expect(client, "/alias", "used", qos, 0);
    }
    publish_raw(client, full("/other"), "moved", 5, 1, 0, &alias, 1);
    publish_raw(client, "", "again", 5, 1, 0, &alias, 1);
    expect(client, "/other", "moved", 1, 0);
    expect(client, "/other", "again", 1, 0);
    MQTTProperties_free(&alias);
    leave(client, MQTTREASONCODE_SUCCESS);
}

static void run_reason_codes(void)
{
    Client *client = connect_as("c"), *watcher = connect_as("w");
    publish(client, "/nobody", "", 1, 0);
    LOCK_WHEN(client, client->puback_reason >= 0, "PUBACK");
    pthread_mutex_unlock(&client->lock);
    CHECK(client->puback_reason == MQTTREASONCODE_NO_MATCHING_SUBSCRIBERS, "PUBACK %d",
          client->puback_reason);
    int code = unsubscribe(client, "/nothing");
    CHECK(code == MQTTREASONCODE_NO_SUBSCRIPTION_FOUND, "UNSUBACK %d", code);
    subscribe(client, "/something", 1);
    CHECK(unsubscribe(client, "/something") == 0, "UNSUBACK of a subscription");
    Client *again = connect_as("c");
    LOCK_WHEN(client, client->disconnect_reason >= 0, "DISCONNECT");
    pthread_mutex_unlock(&client->lock);
    CHECK(client->disconnect_reason == MQTTREASONCODE_SESSION_TAKEN_OVER, "DISCONNECT %d",
          client->disconnect_reason);
    leave(again, MQTTREASONCODE_SUCCESS);
    subscribe(watcher, "/will", 1);
    Client *leaving = connect_with("d", (Options){.will_payload = "with will", .will_qos = 1});
    leave(leaving, MQTTREASONCODE_DISCONNECT_WITH_WILL_MESSAGE);
    expect(watcher, "/will", "with will", 1, 0);
    leave(watcher, MQTTREASONCODE_SUCCESS);
}

/* The identifiers of the next message, added up; how many there are in `count`. */
static unsigned identifiers(Client *client, int *count)
{
    Item item = receive(client);
    unsigned sum = 0;
    *count = MQTTProperties_propertyCount(&item.message->properties,
                                          MQTTPROPERTY_CODE_SUBSCRIPTION_IDENTIFIER);
    for (int i = 0; i < *count; i++)
        sum += MQTTProperties_getPropertyAt(&item.message->properties,
                                            MQTTPROPERTY_CODE_SUBSCRIPTION_IDENTIFIER, i)
                   ->value.integer4;
    release(&item);
    return sum;
}

static void run_subscription_ids(void)
{
    static const unsigned largest = 268435455;
    Client *client = connect_as("c");
    const char *filters[] = {"/s/+", "/s/x"};
    for (int i = 0; i < 2; i++) {
        MQTTProperties properties = MQTTProperties_initializer;
        add_int(&properties, MQTTPROPERTY_CODE_SUBSCRIPTION_IDENTIFIER, i ? largest : 1);
        CHECK(subscribe_with(client, full(filters[i]), 1, NULL, &properties) == 1, "subscribe");
        MQTTProperties_free(&properties);
    }
    int count, more = 0;
    publish(client, "/s/y", "y", 1, 0);
    unsigned sum = identifiers(client, &count);
    CHECK(count == 1 && sum == 1, "one identifier: %d of them, %u", count, sum);
    publish(client, "/s/x", "x", 1, 0);
    sum = identifiers(client, &count);
    if (count == 1) sum += identifiers(client, &more); /* one copy for each is allowed too */
    CHECK(count + more == 2 && sum == largest + 1, "both identifiers: %u", sum);
    leave(client, MQTTREASONCODE_SUCCESS);
}

static void run_will_delay(void)
{
    Client *watcher = connect_as("w");
    subscribe(watcher, "/will", 1);
    subscribe(watcher, "/barrier", 1);
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    die("late", 1, 0, 1, 0);
    expect(watcher, "/will", "late", 1, 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    double waited = (double)(after.tv_sec - before.tv_sec) + (after.tv_nsec - before.tv_nsec) / 1e9;
    CHECK(waited > 0.9, "the will did not wait for its delay");
    die("never", 1, 0, 3600, 1);
    Client *back = connect_with("d", (Options){.keep = 1});
    leave(back, MQTTREASONCODE_SUCCESS);
    nothing_more(watcher, watcher);
    leave(watcher, MQTTREASONCODE_SUCCESS);
}

int main(int count, char **arguments)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
        {"connect", run_connect},
        {"roundtrip", run_roundtrip},
        {"retained", run_retained},
        {"will", run_will},
        {"session", run_session},
        {"wildcard", run_wildcard},
        {"shared", run_shared},
        {"big", run_big},
        {"order", run_order},
        {"properties", run_properties},
        {"request_response", run_request_response},
        {"topic_alias", run_topic_alias},
        {"reason_codes", run_reason_codes},
        {"subscription_ids", run_subscription_ids},
        {"will_delay", run_will_delay},
    };
    if (count < 6) return 2;
    program = arguments[0], host = arguments[1], port = arguments[2], version = arguments[3];
    test_case = arguments[4], prefix = arguments[5];
    level = !strcmp(version, "v31")    ? MQTTVERSION_3_1
            : !strcmp(version, "v311") ? MQTTVERSION_3_1_1
                                       : MQTTVERSION_5;
    snprintf(uri, sizeof uri, "tcp://%s:%s", host, port);
    if (!strcmp(test_case, "die")) {
        Options options = {.will_payload = arguments[6],
                           .will_qos = atoi(arguments[7]),
                           .will_retain = atoi(arguments[8]),
                           .will_delay = (unsigned)atoi(arguments[9]),
                           .keep = atoi(arguments[10]),
                           .expiry = 60};
        connect_with("d", options);
        _exit(0);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(cases[i].name, test_case)) continue;
        cases[i].run();
        return 0;
    }
    FAIL("no such case");
}
