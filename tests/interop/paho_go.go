// Paho Go (Debian's golang-github-eclipse-paho.mqtt.golang-dev) against a broker:
// HOST PORT VERSION CASE PREFIX; see main.rs. It speaks 3.1 and 3.1.1.
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

const deadline = 30 * time.Second

var host, port, version, testCase, prefix string

func fail(format string, values ...interface{}) {
	fmt.Fprintf(os.Stderr, "%s %s: %s\n", version, testCase, fmt.Sprintf(format, values...))
	os.Exit(1)
}

func check(condition bool, format string, values ...interface{}) {
	if !condition {
		fail(format, values...)
	}
}

func equal(found, wanted interface{}, what string) {
	check(reflect.DeepEqual(found, wanted), "%s: %v instead of %v", what, found, wanted)
}

// done waits for the acknowledgement that a token stands for.
func done(token mqtt.Token, what string) {
	check(token.WaitTimeout(deadline), "no %s in time", what)
	check(token.Error() == nil, "%s: %v", what, token.Error())
}

// A client is connected; its messages are waited for. This library does not tell whether a session
// was present: what the session kept shows it.
type client struct {
	paho     mqtt.Client
	messages chan mqtt.Message
}

type will struct {
	payload  string
	qos      byte
	retained bool
}

func connectWith(name string, clean bool, last *will) *client {
	c := &client{messages: make(chan mqtt.Message, 10000)}
	options := mqtt.NewClientOptions().
		AddBroker("tcp://" + host + ":" + port).
		SetClientID(prefix + name).
		SetCleanSession(clean).
		SetKeepAlive(30 * time.Second).
		SetAutoReconnect(false).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { c.messages <- m })
	if name == "" {
		options.SetClientID("")
	}
	if version == "v31" {
		options.SetProtocolVersion(3)
	} else {
		options.SetProtocolVersion(4)
	}
	if last != nil {
		options.SetWill(prefix+"/will", last.payload, last.qos, last.retained)
	}
	c.paho = mqtt.NewClient(options)
	done(c.paho.Connect(), "CONNACK")
	return c
}

func connectAs(name string) *client { return connectWith(name, true, nil) }

func (c *client) subscribeRaw(filter string, qos byte) {
	token := c.paho.Subscribe(filter, qos, nil)
	done(token, "SUBACK")
	equal(token.(*mqtt.SubscribeToken).Result()[filter], qos, "granted QoS of "+filter)
}

func (c *client) subscribe(topic string, qos byte) { c.subscribeRaw(prefix+topic, qos) }

func (c *client) unsubscribe(topic string) {
	done(c.paho.Unsubscribe(prefix+topic), "UNSUBACK")
}

func (c *client) send(topic string, qos byte, retained bool, payload interface{}) mqtt.Token {
	return c.paho.Publish(prefix+topic, qos, retained, payload)
}

func (c *client) publish(topic string, qos byte, retained bool, payload interface{}) {
	done(c.send(topic, qos, retained, payload), fmt.Sprintf("acknowledgement at QoS %d", qos))
}

func (c *client) receive() mqtt.Message {
	select {
	case message := <-c.messages:
		return message
	case <-time.After(deadline):
		fail("no message in time")
		return nil
	}
}

func (c *client) expect(topic, payload string, qos byte, retained bool) {
	m := c.receive()
	found := fmt.Sprint(m.Topic(), " ", string(m.Payload()), " ", m.Qos(), " ", m.Retained())
	equal(found, fmt.Sprint(prefix+topic, " ", payload, " ", qos, " ", retained), "message")
}

// nothingMore: what is published now is the next message that comes.
func (c *client) nothingMore(publisher *client) {
	publisher.publish("/barrier", 1, false, "barrier")
	c.expect("/barrier", "barrier", 1, false)
}

func (c *client) leave() { c.paho.Disconnect(100) }

// die lets a process of its own connect with a will and end without DISCONNECT.
func die(last will) {
	command := exec.Command(os.Args[0], host, port, version, "die", prefix,
		last.payload, strconv.Itoa(int(last.qos)), strconv.FormatBool(last.retained))
	output, err := command.CombinedOutput()
	check(err == nil, "the dying client: %v %s", err, output)
}

func numbers(count int) []int {
	all := make([]int, count)
	for i := range all {
		all[i] = i
	}
	return all
}

func number(m mqtt.Message) int {
	n, err := strconv.Atoi(string(m.Payload()))
	check(err == nil, "payload %q", m.Payload())
	return n
}

var cases = map[string]func(){
	"connect": func() {
		connectAs("c").leave()
		if version != "v31" { // 3.1 needs a client identifier
			connectAs("").leave()
		}
	},

	"roundtrip": func() {
		c := connectAs("c")
		for qos := byte(0); qos < 3; qos++ {
			topic := fmt.Sprint("/t", qos)
			c.subscribe(topic, qos)
			for _, size := range []int{0, 1, 256, 20000} {
				payload := bytes.Repeat([]byte{0, 1, 254, 255}, size/4+1)[:size]
				c.publish(topic, qos, false, payload)
				m := c.receive()
				check(bytes.Equal(m.Payload(), payload), "payload of %d at QoS %d", size, qos)
				equal(m.Topic(), prefix+topic, "topic")
				check(m.Qos() == qos && !m.Retained() && !m.Duplicate(), "QoS or flags")
			}
		}
		c.publish("/t1", 2, false, "down")
		c.expect("/t1", "down", 1, false)
		c.unsubscribe("/t1")
		c.publish("/t1", 1, false, "gone")
		c.publish("/t2", 1, false, "last")
		c.expect("/t2", "last", 1, false)
		c.leave()
	},

	"retained": func() {
		c, late, later := connectAs("c"), connectAs("late"), connectAs("later")
		c.publish("/r/one", 1, true, "old")
		c.publish("/r/one", 1, true, "new")
		c.publish("/r/two", 2, true, "two")
		late.subscribe("/r/#", 2)
		var found []string
		for i := 0; i < 2; i++ {
			m := late.receive()
			found = append(found, fmt.Sprint(m.Topic(), " ", string(m.Payload()), " ", m.Retained()))
		}
		sort.Strings(found)
		equal(found, []string{prefix + "/r/one new true", prefix + "/r/two two true"}, "retained")
		c.publish("/r/one", 1, true, "live")
		late.expect("/r/one", "live", 1, false)
		for _, topic := range []string{"/r/one", "/r/two"} {
			c.publish(topic, 1, true, "")
			late.expect(topic, "", 1, false)
		}
		later.subscribe("/r/#", 2)
		later.subscribe("/barrier", 1)
		later.nothingMore(c)
		c.leave()
		late.leave()
		later.leave()
	},

	"will": func() {
		watcher, late := connectAs("w"), connectAs("l")
		watcher.subscribe("/will", 2)
		watcher.subscribe("/barrier", 1)
		for qos := byte(0); qos < 3; qos++ {
			die(will{"gone", qos, false})
			watcher.expect("/will", "gone", qos, false)
		}
		connectWith("d", true, &will{"never", 1, false}).leave()
		watcher.nothingMore(watcher)
		die(will{"kept", 1, true})
		watcher.expect("/will", "kept", 1, false)
		late.subscribe("/will", 1)
		late.expect("/will", "kept", 1, true)
		watcher.publish("/will", 1, true, "")
		watcher.leave()
		late.leave()
	},

	"session": func() {
		first, sender := connectWith("s", false, nil), connectAs("p")
		first.subscribe("/q1", 1)
		first.subscribe("/q2", 2)
		first.leave()
		var tokens []mqtt.Token
		for i := range numbers(100) {
			tokens = append(tokens, sender.send("/q1", 1, false, strconv.Itoa(i)))
			tokens = append(tokens, sender.send("/q2", 2, false, strconv.Itoa(i)))
		}
		for _, token := range tokens {
			done(token, "acknowledgement")
		}
		second := connectWith("s", false, nil)
		heard := map[byte][]int{}
		for range numbers(200) {
			m := second.receive()
			check(strings.HasSuffix(m.Topic(), fmt.Sprint("/q", m.Qos())), "QoS of %s", m.Topic())
			heard[m.Qos()] = append(heard[m.Qos()], number(m))
		}
		equal(heard[1], numbers(100), "queued at QoS 1")
		equal(heard[2], numbers(100), "queued at QoS 2")
		sender.publish("/q1", 1, false, "live")
		second.expect("/q1", "live", 1, false)
		second.leave()
		third := connectAs("s")
		third.subscribe("/barrier", 1)
		sender.publish("/q1", 1, false, "lost")
		third.nothingMore(sender)
		third.leave()
		sender.leave()
	},

	"wildcard": func() {
		c := connectAs("c")
		for _, row := range []struct {
			filter  string
			yes, no []string
		}{
			{"/a/+/c", []string{"/a/b/c", "/a//c"}, []string{"/a/b", "/a/b/c/d", "/a/c"}},
			{"/a/#", []string{"/a", "/a/b", "/a/b/c/d"}, []string{"/ab", "/b"}},
			{"/+", []string{"/x", "/"}, []string{"/x/y"}},
			{"/+/+/#", []string{"/x/y", "/x/y/z"}, []string{"/x"}},
		} {
			c.subscribe(row.filter, 1)
			for _, topic := range append(row.no, row.yes...) {
				c.publish(topic, 1, false, topic)
			}
			for _, topic := range row.yes {
				c.expect(topic, topic, 1, false)
			}
			c.unsubscribe(row.filter)
		}
		c.leave()
	},

	"shared": func() {
		members := []*client{connectAs("a"), connectAs("b")}
		sender := connectAs("p")
		for _, member := range members {
			member.subscribeRaw("$share/group/"+prefix+"/job", 1)
		}
		for i := range numbers(100) {
			sender.publish("/job", 1, false, strconv.Itoa(i))
		}
		var all []int
		counts := make([]int, 2)
		for range numbers(100) {
			var m mqtt.Message
			select {
			case m = <-members[0].messages:
				counts[0]++
			case m = <-members[1].messages:
				counts[1]++
			case <-time.After(deadline):
				fail("%d of 100 shared messages", len(all))
			}
			all = append(all, number(m))
		}
		sort.Ints(all)
		equal(all, numbers(100), "each message once")
		check(counts[0] > 0 && counts[1] > 0, "one member had all of the work")
		members[0].leave()
		members[1].leave()
		sender.leave()
	},

	"big": func() {
		c := connectAs("c")
		payload := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		c.subscribe("/big", 2)
		for qos := byte(0); qos < 3; qos++ {
			c.publish("/big", qos, false, payload)
			m := c.receive()
			check(bytes.Equal(m.Payload(), payload), "1 MiB at QoS %d came changed", qos)
			equal(m.Qos(), qos, "QoS")
		}
		c.leave()
	},

	"order": func() {
		sender, receiver := connectAs("p"), connectAs("r")
		for qos := byte(0); qos < 3; qos++ {
			topic := fmt.Sprint("/o", qos)
			receiver.subscribe(topic, qos)
			for i := range numbers(1000) {
				sender.send(topic, qos, false, strconv.Itoa(i))
			}
			for i := range numbers(1000) {
				equal(number(receiver.receive()), i, fmt.Sprint("order at QoS ", qos))
			}
		}
		sender.leave()
		receiver.leave()
	},

	"die": func() {
		qos, err := strconv.Atoi(os.Args[7])
		check(err == nil, "QoS %s", os.Args[7])
		connectWith("d", true, &will{os.Args[6], byte(qos), os.Args[8] == "true"})
		os.Exit(0)
	},
}

func main() {
	if len(os.Args) < 6 {
		os.Exit(2)
	}
	host, port, version, testCase, prefix = os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	run, known := cases[testCase]
	check(known, "no such case")
	run()
}
