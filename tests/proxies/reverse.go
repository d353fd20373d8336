// A reverse proxy of Go's standard library: net/http/httputil.ReverseProxy with a pool of kept connections.
package main

import (
	"flag"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

func main() {
	listen := flag.String("listen", "", "where to listen, `IP:PORT`")
	upstream := flag.String("upstream", "", "where the server is, `IP:PORT`")
	flag.Parse()

	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: *upstream})
	proxy.Transport = &http.Transport{
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		// More than a test has requests under way: every connection is kept. Go switches Nagle's algorithm off.
		MaxIdleConns:        0,
		MaxIdleConnsPerHost: 4096,
		// What the client asks for is what the server gets asked for.
		DisableCompression: true,
	}
	log.Fatal(http.ListenAndServe(*listen, proxy))
}
