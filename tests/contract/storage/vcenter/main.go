// A vCenter on loopback: govmomi's simulator, as Debian packages it. Its address goes to standard output;
// it ends with its standard input. The argument is a PEM file with the certificate and its key.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/vmware/govmomi/simulator"
)

func main() {
	certificate, err := tls.LoadX509KeyPair(os.Args[1], os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	model := simulator.VPX()
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server := model.Service.NewServer()
	fmt.Println(server.URL.Host)
	io.Copy(io.Discard, os.Stdin)
	server.Close()
	model.Remove()
}
