// Package critest builds the field's own suite for CRI engines from its released
// packages. The suite talks to an engine through its socket; nothing here knows
// which engine that is.
package critest

import (
	"flag"
	"os"
	"testing"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"

	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	"sigs.k8s.io/cri-tools/pkg/framework"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)

func TestMain(m *testing.M) {
	framework.RegisterFlags()
	flag.Parse()
	os.Exit(m.Run())
}

// TestSuite runs every spec that the two imported packages have registered. The
// flags --ginkgo.* and the framework's own choose among them.
func TestSuite(t *testing.T) {
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "critest")
}
