// The engine of NodeLocal DNSCache: CoreDNS with the plugins that node-cache compiles in and no others.
// What node-cache adds to it (a link, iptables rules, placeholders in its Corefile) answers no query.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/bufsize"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/debug"
	_ "github.com/coredns/coredns/plugin/dns64"
	_ "github.com/coredns/coredns/plugin/dnstap"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metadata"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/pprof"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/template"
	_ "github.com/coredns/coredns/plugin/timeouts"
	_ "github.com/coredns/coredns/plugin/trace"
	_ "github.com/coredns/coredns/plugin/whoami"
)

func init() {
	// In the order of CoreDNS's own plugin.cfg, which node-cache keeps.
	dnsserver.Directives = []string{
		"metadata", "timeouts", "reload", "bufsize", "bind", "debug", "trace", "health", "pprof",
		"prometheus", "errors", "log", "dnstap", "dns64", "loadbalance", "rewrite", "cache",
		"template", "hosts", "loop", "forward", "whoami",
	}
}

func main() {
	coremain.Run()
}
