// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/wellknown"
)

const (
	// tick is how often is looked for probes that are due or late.
	tick = 250 * time.Millisecond
	// check is how often sockets are compared with what must be open.
	check = 2 * time.Second
	// othersAtOnce is the number of a zone's nodes whose links are probed at a time, and rotation
	// the time after which the next ones are.
	othersAtOnce = 16
	rotation     = time.Minute
	// answersEach is the number of probes of a node by one link that are answered each second.
	answersEach = 20
)

// View is what a node probes, and whom it answers.
type View struct {
	// Processors are always probed, Others in turn: nodes of the own zone.
	Processors, Others []Target
	// Zones are the nodes of each other zone to which a path leads. They are probed by the nodes of
	// the own zone together, which are Crew.
	Zones map[string][]Target
	Crew  int
	// Spaces are the namespaces in which probes are answered; the empty one is the process's own.
	Spaces []string
	// Pulsed are nodes of which must be known within a second whether they live. With Whole, also
	// whether full-size packets pass.
	Pulsed []Target
	Whole  bool
	// Marks are the marks of packets that go out by an interface, which lead them there. Others
	// carry none.
	Marks map[string]uint32
	// Known are the health addresses of the nodes that are answered, and the names of the
	// interfaces by which their packets come: nobody else's packets are theirs.
	Known map[netip.Addr][]string
}

// Prober measures the ways of a node. It is safe for concurrent use.
type Prober struct {
	own [familyCount]netip.Addr

	mu       sync.Mutex
	view     View
	links    map[desired.Hop]*way
	zones    map[string]*way
	sent     map[nonce]sent
	pulses   map[desired.Hop]*life
	beaten   map[nonce]beaten // pulses
	changed  bool             // a node came to life or died, or is not asked any more, since the last beat
	beatLast time.Time        // when the last beat was
	onLife   func()
	sockets  map[place]*socket
	budget   map[asker]int // answers given in this second
	renewed  time.Time     // when budget was
	ticked   time.Time
	began    time.Time
	fault    error // of the sockets
}

// place is where a socket is.
type place struct {
	space  string
	family int
}

// arrival is where a packet came in.
type arrival struct {
	place
	device string // the interface
}

// asker is who asks, and by which interface.
type asker struct {
	addr   netip.Addr
	device string
}

// by reports whether a packet came by an interface; an empty name stands for any.
func (a arrival) by(device string) bool { return device == "" || a.device == device }

type socket struct {
	*net.UDPConn
	identity identity
}

// sent is a probe without an outcome.
type sent struct {
	packet packet
	way    *way
	at     time.Time
	from   place
	to     netip.AddrPort
	device string // by which the answer comes
}

// New returns the prober of a node with these health addresses. It does nothing before Run.
func New(v4, v6 netip.Addr) *Prober {
	return &Prober{
		own: [familyCount]netip.Addr{v4, v6}, links: map[desired.Hop]*way{}, zones: map[string]*way{},
		sent: map[nonce]sent{}, pulses: map[desired.Hop]*life{}, beaten: map[nonce]beaten{}, sockets: map[place]*socket{}, budget: map[asker]int{},
	}
}

// Follow replaces what is probed and answered.
func (p *Prober) Follow(v View) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.view = v
}

// Run sends and answers probes until ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	p.mu.Lock()
	p.began = time.Now()
	p.mu.Unlock()
	defer p.close()
	beating := make(chan struct{})
	go func() {
		defer close(beating)
		p.beat(ctx)
	}()
	defer func() { <-beating }()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var checked time.Time
	for {
		if now := time.Now(); now.Sub(checked) >= check {
			checked = now
			p.keepSockets()
		}
		p.step(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// step records what is late and sends what is due.
func (p *Prober) step(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ticked = now
	p.arrange(now)
	for n, s := range p.sent {
		if now.Sub(s.at) >= timeout {
			delete(p.sent, n)
			s.way.concluded(s.packet, 0, false, now)
		}
	}
	for _, w := range p.links {
		p.sendDue(w, now)
	}
	for _, w := range p.zones {
		p.sendDue(w, now)
	}
}

// arrange brings the ways to what the view asks for.
func (p *Prober) arrange(now time.Time) {
	links := slices.Concat(p.view.Processors, p.inTurn(now))
	keep := map[desired.Hop]bool{}
	for _, t := range links {
		hop := t.hop()
		keep[hop] = true
		if w := p.links[hop]; w != nil {
			w.update([]Target{t}, smallInterval, linkFullInterval)
		} else {
			p.links[hop] = newWay([]Target{t}, smallInterval, linkFullInterval, now)
		}
	}
	for hop := range p.links {
		if !keep[hop] {
			delete(p.links, hop)
		}
	}
	share := time.Duration(max(1, p.view.Crew) * max(1, len(p.view.Zones)))
	for zone, targets := range p.view.Zones {
		if w := p.zones[zone]; w != nil {
			w.update(targets, share*zoneInterval, share*zoneFullInterval)
		} else {
			p.zones[zone] = newWay(targets, share*zoneInterval, share*zoneFullInterval, now)
		}
	}
	for zone := range p.zones {
		if len(p.view.Zones[zone]) == 0 {
			delete(p.zones, zone)
		}
	}
}

// inTurn returns the nodes of the own zone whose links are probed now.
func (p *Prober) inTurn(now time.Time) []Target {
	others := p.view.Others
	if len(others) <= othersAtOnce {
		return others
	}
	first := int(now.Sub(p.began)/rotation) * othersAtOnce % len(others)
	return slices.Concat(others, others)[first : first+othersAtOnce]
}

func (p *Prober) sendDue(w *way, now time.Time) {
	for _, packet := range w.due(now) {
		p.send(w, packet, now)
	}
}

func (p *Prober) send(w *way, out packet, now time.Time) {
	t := w.target()
	s := sent{out, w, now, place{t.Space, out.family}, netip.AddrPortFrom(t.addr(out.family), wellknown.ProbePort), t.Interface}
	n := newNonce()
	err := errors.New("no socket is open for it")
	if c := p.sockets[s.from]; c != nil {
		err = c.send(message{kind: request, nonce: n, size: out.size - headersOf(out.family)}, s.to, p.view.Marks[t.Interface])
	}
	f := &w.families[out.family]
	f.fault = ""
	if err != nil && out.size == 0 {
		f.fault = err.Error()
	}
	p.sent[n] = s // without an error or with one: it is lost if there is no answer
}

// receive reads a socket until it is closed.
func (p *Prober) receive(c *socket, from place) {
	b, control := make([]byte, 1<<16), make([]byte, 128)
	for {
		size, told, _, source, err := c.ReadMsgUDPAddrPort(b, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(tick) // such as an ICMP error about an earlier packet
			continue
		}
		source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
		m, ok := decode(b[:size])
		if !ok || source.Port() != wellknown.ProbePort {
			continue
		}
		at := arrival{from, c.device(control[:told])}
		switch {
		case m.kind == answer:
			p.answered(m, source, at, time.Now())
		default:
			if mark, may := p.mayAnswer(source.Addr(), at, time.Now()); may {
				_ = c.send(message{kind: answer, nonce: m.nonce, size: m.size}, source, mark) // it is lost if it cannot be sent
			}
		}
	}
}

// mayAnswer reports whether a node is answered, and the mark of the answer, which goes back by the
// interface of the question. The node must be known, its packets must come by its own interface,
// and it must not ask too often. Who sends packets in its name neither learns anything nor uses up
// its answers.
func (p *Prober) mayAnswer(source netip.Addr, at arrival, now time.Time) (mark uint32, may bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.ContainsFunc(p.view.Known[source], at.by) {
		return 0, false
	}
	if now.Sub(p.renewed) >= time.Second {
		clear(p.budget)
		p.renewed = now
	}
	who := asker{source, at.device}
	p.budget[who]++
	return p.view.Marks[at.device], p.budget[who] <= answersEach
}

// answered records an answer, if it is from whom and where the probe was sent to.
func (p *Prober) answered(m message, source netip.AddrPort, at arrival, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.sent[m.nonce]
	if !ok {
		p.pulsed(m, source, at, now)
		return
	}
	if s.to != source || s.from != at.place || !at.by(s.device) {
		return
	}
	delete(p.sent, m.nonce)
	s.way.concluded(s.packet, now.Sub(s.at), true, now)
}

// keepSockets opens the sockets that are missing, and closes those whose namespace is gone.
func (p *Prober) keepSockets() {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	wanted := map[place]bool{}
	for _, space := range p.view.Spaces {
		id, err := identify(space)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for family, addr := range p.own {
			at := place{space, family}
			wanted[at] = true
			if have := p.sockets[at]; have != nil {
				if have.identity == id {
					continue
				}
				have.Close()
				delete(p.sockets, at)
			}
			conn, err := listen(space, addr)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			c := &socket{conn, id}
			p.sockets[at] = c
			go p.receive(c, at)
		}
	}
	for at, c := range p.sockets {
		if !wanted[at] {
			c.Close()
			delete(p.sockets, at)
		}
	}
	p.fault = errors.Join(errs...)
}

func (p *Prober) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at, c := range p.sockets {
		c.Close()
		delete(p.sockets, at)
	}
}

// Status returns what is known of the links and of the paths to other zones, in order. The error
// says why probes cannot be sent or answered everywhere.
func (p *Prober) Status() ([]api.WayStatus, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []api.WayStatus
	for hop, w := range p.links {
		list = append(list, w.status(hop.String()))
	}
	for zone, w := range p.zones {
		list = append(list, w.status(zone))
	}
	slices.SortFunc(list, func(a, b api.WayStatus) int { return cmp.Compare(a.To, b.To) })
	err := p.fault
	if late := time.Since(p.ticked); !p.ticked.IsZero() && late > 5*time.Second {
		err = errors.Join(err, fmt.Errorf("no probe was sent for %s", late.Round(time.Second)))
	}
	return list, err
}
