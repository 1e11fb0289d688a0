// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport_test

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
)

// BenchmarkProcessOfTheNode compares a process of the node that has an endpoint with the same
// process in the endpoint's own namespace: of a TCP connection from a workload, the throughput and
// the time of a request and answer of 1 KiB. The two are measured in turn.
//
//	go test -run ^$ -bench ProcessOfTheNode ./internal/node/hostport
func BenchmarkProcessOfTheNode(b *testing.B) {
	s := newSite(b)
	s.ensure(s.one("", "5432", "5433"))
	serve := func(n ns.NetNS, port string) {
		must.NoError(b, n.Do(func(ns.NetNS) error {
			l, err := net.Listen("tcp", port)
			if err != nil {
				return err
			}
			b.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go serveBench(c)
				}
			}()
			return nil
		}))
	}
	serve(s.node, ":5432")
	serve(s.node, "127.0.0.1:5433")
	serve(s.first, ":5434")
	const rounds = 5
	ways := []struct{ name, to string }{{"node", ":5432"}, {"loopback", ":5433"}, {"namespace", ":5434"}}
	rates, times := map[string][]float64{}, map[string][]float64{}
	for b.Loop() {
		for range rounds {
			for _, w := range ways {
				rates[w.name] = append(rates[w.name], s.rate(first4+w.to, 400*time.Millisecond))
				times[w.name] = append(times[w.name], s.requestTime(first4+w.to, 2000))
			}
		}
	}
	median := func(list []float64) float64 {
		slices.Sort(list)
		return list[len(list)/2]
	}
	for _, w := range ways {
		b.ReportMetric(median(rates[w.name])/1e6*8, w.name+"-Mb/s")
		b.ReportMetric(median(times[w.name]), w.name+"-us")
	}
	for _, w := range ways[:2] {
		b.ReportMetric(median(rates[w.name])/median(rates["namespace"]), w.name+"-throughput-ratio")
		b.ReportMetric(median(times[w.name])/median(times["namespace"]), w.name+"-latency-ratio")
	}
}

// serveBench answers each KiB with a KiB if the first byte is 1, and otherwise takes all.
func serveBench(c net.Conn) {
	defer c.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return
	}
	if first[0] == 0 {
		_, _ = io.Copy(io.Discard, c)
		return
	}
	request := make([]byte, 1024)
	for {
		if _, err := io.ReadFull(c, request); err != nil {
			return
		}
		if _, err := c.Write(request); err != nil {
			return
		}
	}
}

// rate returns how many bytes a second a connection carries.
func (s *site) rate(to string, during time.Duration) float64 {
	c := s.dial(s.workload, "tcp", to)
	defer c.Close()
	_, err := c.Write([]byte{0})
	must.NoError(s.t, err)
	block := make([]byte, 128<<10)
	began, sent := time.Now(), 0
	for time.Since(began) < during {
		n, err := c.Write(block)
		must.NoError(s.t, err)
		sent += n
	}
	return float64(sent) / time.Since(began).Seconds()
}

// requestTime returns the median time of a request and its answer, in microseconds.
func (s *site) requestTime(to string, requests int) float64 {
	c := s.dial(s.workload, "tcp", to)
	defer c.Close()
	_, err := c.Write([]byte{1})
	must.NoError(s.t, err)
	block := make([]byte, 1024)
	var list []float64
	for range requests {
		began := time.Now()
		_, err := c.Write(block)
		must.NoError(s.t, err)
		_, err = io.ReadFull(c, block)
		must.NoError(s.t, err)
		list = append(list, float64(time.Since(began).Nanoseconds())/1000)
	}
	slices.Sort(list)
	return list[len(list)/2]
}
