// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import "sync"

// locks serialises work by key. The zero value is ready for use.
type locks[K comparable] struct {
	mu   sync.Mutex
	held map[K]chan struct{} // closed when given back
}

// lock waits until nobody holds k and takes it. The function that it returns
// gives it back.
func (l *locks[K]) lock(k K) (unlock func()) {
	for {
		l.mu.Lock()
		busy, taken := l.held[k]
		if !taken {
			if l.held == nil {
				l.held = map[K]chan struct{}{}
			}
			done := make(chan struct{})
			l.held[k] = done
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, k)
				l.mu.Unlock()
				close(done)
			}
		}
		l.mu.Unlock()
		<-busy
	}
}
