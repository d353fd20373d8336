// A reverse proxy of Go's standard library: net/http/httputil.ReverseProxy with a pool of kept connections.
package main

import (
	"flag"
	"io"
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
	direct := proxy.Director
	proxy.Director = func(request *http.Request) {
		direct(request)
		if request.ContentLength > 0 {
			request.Body = &sized{request.Body, request.ContentLength}
		}
	}
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

// A request's body that is not read beyond its end. The transport reads it once more after it sent all of it; when the
// response is sent back before that, the server has closed the body, and the transport takes that for an error and
// closes the connection to the server within the response (golang/go#40747).
type sized struct {
	io.ReadCloser
	left int64
}

func (body *sized) Read(bytes []byte) (int, error) {
	if body.left == 0 {
		return 0, io.EOF
	}
	count, err := body.ReadCloser.Read(bytes)
	body.left -= int64(count)
	return count, err
}
